"""The page stands alone, holds what the run holds and no more, and no name ever becomes markup."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from edgeprune.errors import DataError
from edgeprune.report import facts, plots
from edgeprune.report.page import render

jinja2 = pytest.importorskip("jinja2")

EVIL = '<script>alert("x")</script>'
VOID = {"meta", "br", "link", "hr", "img", "input"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed and not open; keeps what is referred to, and what is open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labelled_by: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []  # type: ignore[list-item]
        self.links += [v for k, v in attrs if k in ("src", "href") and v]
        self.labelled_by |= {found["aria-labelledby"]} if found.get("aria-labelledby") else set()  # type: ignore[arg-type]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished and measured prune run, as the commands write it."""
    path = tmp_path / "prune-net-1"
    path.mkdir()
    write(path / "run.json", {"command": "prune", "model": "runs/adapt-net-1"})
    results = {
        "accuracy_before": 0.91,
        "accuracy": 0.905,
        "macs": 40_000_000,
        "dense_macs": 100_000_000,
        "chosen_step": 6,
    }
    write(
        path / "done.json",
        {"command": "prune", "model": "runs/adapt-net-1", "finished": "2026-01-02", "results": results},
    )
    (path / "config.toml").write_text('macs = "0.4"\nkeep = ["stem.*"]\n')
    lines = [{"stage": "prune", "step": s, "loss": 1 / (s + 1), "scores": {"im": 0.1 * s}} for s in range(10)]
    lines.append({"stage": "prune", "step": 10, "loss": None})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    document = {
        "format": 1,
        "spec": "package.nets:net",
        "dense": {"conv1.weight": [64, 3, 3, 3], "conv2.weight": [64, 64, 3, 3], "fc.weight": [10, 64]},
        "history": [
            {"command": "adapt", "objective": "shot", "finished": "2026-01-01"},
            {"command": "prune"},
        ],
    }
    shapes = {"conv1.weight": (24, 3, 3, 3), "conv2.weight": (64, 24, 3, 3), "fc.weight": (10, 64)}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors", {"edgeprune": json.dumps(document)})
    parity = {"n": 256, "relative": 2e-6, "flips": 0, "ties": 1, "worst": [{"index": 3, "max_abs": 1e-5}]}
    write(path / "model.onnx.json", {"meta": {"macs": 40_000_000, "parity": parity}})
    write(path / "bench.json", [bench_row("prune-net-1/model.onnx", 2.0, 0.5)])
    return path


def bench_row(name: str, p50: float, speedup: float) -> dict[str, Any]:
    return {
        "schema": "edgeprune.bench/1",
        "model": {"name": name, "bytes": 1_500_000, "macs": 40_000_000},
        "config": {"runtime": "ort", "precision": "fp32", "batch": 1, "threads": 1},
        "host": {"cpu": {"name": "Test CPU"}, "gpu": None, "os": "Linux"},
        "latency_ms": {"p50": p50, "p90": p50 * 1.1, "p99": None},
        "throughput_ips": 1000 / p50,
        "verdict": {"word": "faster", "speedup": 1.8, "ci_low": 1.7, "ci_high": 1.9, "confidence": 0.99},
    }


def text_of(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", body))


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_it_holds_what_the_run_holds(run: Path) -> None:
    page = render([run])
    said = text_of(page)
    for part in (
        "91.0%",
        "90.5%",
        "100\u00a0M",
        "40\u00a0M",
        "2 ms (p90 2.2)",
        "faster: 1.80x (99%: 1.70 to 1.90)",
    ):
        assert part in said, part
    for part in (
        "0 of 256 flipped, error 2.0e-06",
        "conv1",
        "64 → 24",
        "1 layer cut, 2 as they were",
        "Test CPU",
    ):
        assert part in said, part
    for part in ("package.nets:net", "objective shot", "chosen without labels", "Labels were used", "stem.*"):
        assert part in said, part
    assert "conv2 " not in said
    assert page.count("<figure>") == 2


def test_it_stands_alone_and_is_well_formed(run: Path) -> None:
    page = render([run, run])
    found = parsed(page)
    assert found.links == []
    assert not {"script", "link", "iframe", "object", "img"} & found.tags
    assert "url(" not in page
    assert "@import" not in page
    assert len(found.ids) == len(set(found.ids))
    assert found.labelled_by <= set(found.ids)
    assert '<html lang="en">' in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == page.count('role="img" aria-label=')


def test_two_runs_with_accuracy_make_a_trade_off(run: Path, tmp_path: Path) -> None:
    assert "<circle" not in render([run])
    page = render([run, run])
    assert page.count("<circle") == 4
    assert "Accuracy (%) against MACs" in page
    assert "Accuracy (%) against latency (ms) on Test CPU, Linux" in page


def test_rows_of_several_devices_say_which(run: Path) -> None:
    assert "Device" not in text_of(render([run]))
    other = {**bench_row("prune-net-1/model.onnx", 5.0, 0.5), "host": {"board": "Test Board"}}
    write(run / "board.json", [other])
    said = text_of(render([run]))
    assert "model.onnx Test Board ort" in said
    assert "model.onnx Test CPU, Linux ort" in said


def told(run: Path, *rows: dict[str, Any]) -> None:
    """The history as bench appends it, its last line torn."""
    (run / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"schema": "edgepr')


def row_of(p50: float, **config: Any) -> dict[str, Any]:
    row = bench_row("prune-net-1/model.onnx", p50, 0.5)
    return {**row, "config": {**row["config"], "mode": "steady", "input": "random", **config}}


def test_the_history_that_bench_writes_fills_the_page(run: Path) -> None:
    (run / "bench.json").unlink()
    told(run, row_of(2.5))
    said = text_of(render([run]))
    assert "ort fp32, steady, batch 1, 1 thread, random input, on Test CPU, Linux" in said
    assert "2.5 ms (p90 2.75) faster: 1.80x" in said


def test_a_row_in_the_history_and_in_a_file_is_one_and_a_newer_one_replaces_it(run: Path) -> None:
    old, new = ({**row_of(p50), "created": f"2026-01-0{day}T"} for p50, day in ((2.5, 1), (3.5, 2)))
    told(run, old, new)
    write(
        run / "bench.json", {"schema": "edgeprune.bench-results/1", "results": [new], "output": "bench.json"}
    )
    said = text_of(render([run]))
    assert "2.5 ms" not in said
    assert said.count("ort fp32 steady 1 1 3.5 3.85") == 1
    assert "1 earlier row in the history is not shown" in said


def test_ways_of_measuring_are_told_apart_and_the_plainest_is_the_headline(run: Path) -> None:
    (run / "bench.json").unlink()
    paced = {**row_of(9.0, mode="paced", fps=30), "throughput_ips": 1091}
    foreign = {**row_of(1.5, batch=None, threads=None, runtime="tensorrt"), "gpu_ms": {"p50": 1.25}}
    told(run, row_of(24.0, mode="cold"), row_of(2.5), row_of(1.75, threads=2), paced, foreign)
    said = text_of(render([run]))
    assert "2.5 ms (p90 2.75)" in said, "steady on one thread, though the newest rows are others"
    assert "ort fp32 cold 1 1 24 26.4 – – – faster" in said, "no images a second when cold"
    assert "ort fp32 steady 1 2 1.75" in said
    assert "paced, 30 frames a second" in said
    assert "1091" not in said
    assert "tensorrt fp32 steady – – 1.5 1.65 – 1.25 666.7" in said
    assert "None" not in said


def test_a_run_measured_in_another_way_says_so(run: Path, tmp_path: Path) -> None:
    told(run, row_of(2.5, threads=2))
    (run / "bench.json").unlink()
    other = tmp_path / "prune-net-2"
    other.mkdir()
    (other / "bench.jsonl").write_text(
        json.dumps({**row_of(7.0), "model": {"name": "prune-net-2/model.onnx"}}) + "\n"
    )
    said = text_of(render([run, other]))
    assert "7 ms (p90 7.7) faster" in said
    assert (
        "2.5 ms (p90 2.75): model.onnx, ort fp32, steady, batch 1, 2 threads, random input, on Test CPU"
        in said
    )


def test_a_verdict_names_its_baseline_why_and_what_was_forced(run: Path) -> None:
    (run / "bench.json").unlink()
    row = row_of(2.5)
    row["verdict"] |= {"word": "cannot say", "vs": "runs/r18/model.onnx", "why": "7 rounds are too few"}
    row["verdict"]["forced"] = ["batch 1 against 8"]
    told(run, row)
    assert (
        "cannot say: 1.80x (99%: 1.70 to 1.90) against r18/model.onnx: 7 rounds are too few; forced, although batch 1"
        in text_of(render([run]))
    )


def test_what_diagnose_found_is_on_the_page(run: Path) -> None:
    (run / "bench.json").unlink()
    told(
        run,
        {
            **row_of(2.5),
            "diagnosis": [{"kind": "memory", "text": "memory-bound: 34% of the time", "layers": []}],
        },
    )
    said = text_of(render([run]))
    assert "What holds it back" in said
    assert "memory-bound: 34% of the time" in said


def test_every_exported_file_has_its_parity(run: Path) -> None:
    meta = {
        "precision": "int8",
        "parity": {"n": 256, "flips": 3, "ties": 2, "relative": 0.0447, "cosine": 0.987},
    }
    write(run / "model.int8.onnx.json", {"meta": meta})
    ends = {"ends": {"parity": {"n": 64, "relative": 5e-8}}}
    write(run / "model.int8.e2e.onnx.json", {"meta": {**meta, **ends}})
    said = text_of(render([run]))
    assert "model.int8.onnx int8 – 3 2 0.0447 0.9870000 256" in said
    assert "model.int8.e2e.onnx int8 – – – 5e-08 – 64" in said, "compared with the file without ends"
    assert "0 of 256 flipped, error 2.0e-06; int8: 3 flipped" in said


def test_no_python_is_printed(run: Path) -> None:
    done = json.loads((run / "done.json").read_text())
    groups = [{"layer": "conv1", "macs": 1_500_000}, {"layer": "conv2", "macs": 2_500_000}]
    done["results"] |= {
        "heaviest": groups,
        "widths": groups,
        "cuts": [{"cut": 0, "layers": groups}],
        "many": groups * 9,
    }
    write(run / "done.json", done)
    said = text_of(render([run]))
    assert "{" not in said
    assert "&#39;" not in said
    assert "Heaviest layer conv1, MACs 1.5 M; layer conv2, MACs 2.5 M" in said
    assert "Many 18 entries" in said
    assert said.count("layer conv1, MACs 1.5 M") == 2, "the widths have their own place"


def test_before_adapt_has_the_size_of_what_was_not_cut(run: Path) -> None:
    """A dense head of 1000 classes is no part of the network before, and its MACs are those of now."""
    tensors = {
        "conv1.weight": np.zeros((8, 3, 3, 3), np.float32),
        "head.weight": np.zeros((4, 8), np.float32),
    }
    dense = {"conv1.weight": [8, 3, 3, 3], "head.weight": [1000, 8]}
    document = {"format": 1, "spec": "package.nets:net", "dense": dense, "classifier": "head", "history": []}
    save_file(tensors, run / "model.safetensors", {"edgeprune": json.dumps(document)})
    results = {"accuracy_before": 0.5, "accuracy": 0.75, "macs": 148_000_000}
    write(run / "done.json", {"command": "adapt", "model": "x:y", "finished": "now", "results": results})
    assert "before adapt 50.0% 148\u00a0M 248 –" in text_of(render([run]))


def test_curves_of_validators_are_called_so(run: Path) -> None:
    lines = [{"stage": "source", "step": s, "validators": {"information": s}} for s in range(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = text_of(render([run]))
    assert "Validator: information, stage source" in said
    assert "Validators" not in said


def test_cells_name_their_column_on_a_phone(run: Path) -> None:
    page = render([run])
    assert '<td role="cell" data-label="Parity">' in page
    assert '<td role="cell" data-label="Mode" class="none">' in page
    assert "content: attr(data-label)" in page


def test_a_new_head_is_no_cut(run: Path) -> None:
    tensors = {
        "conv1.weight": np.zeros((8, 3, 3, 3), np.float32),
        "head.weight": np.zeros((4, 8), np.float32),
    }
    dense = {"conv1.weight": [8, 3, 3, 3], "head.weight": [1000, 8]}
    document = {"format": 1, "spec": "package.nets:net", "dense": dense, "classifier": "head", "history": []}
    save_file(tensors, run / "model.safetensors", {"edgeprune": json.dumps(document)})
    assert "Widths" not in text_of(render([run]))


def test_cuts_are_a_table(run: Path) -> None:
    done = json.loads((run / "done.json").read_text())
    done["results"]["cuts"] = [
        {"cut": 0, "agreement_after_cut": 0.25},
        {"cut": 1, "agreement_after_cut": 0.5, "agreement_after_recovery": 0.75},
    ]
    write(run / "done.json", done)
    page = render([run])
    parsed(page)
    said = text_of(page)
    assert "Cut Agreement after cut Agreement after recovery 0 0.25 - 1 0.5 0.75" in said


def test_the_images_that_differ_most_are_shown(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.full((300, 200, 3), (200, 30, 30), np.uint8)).save(folder / "red.png")
    sidecar = json.loads((run / "model.onnx.json").read_text())
    worst = [{"image": name, "reference": 1, "candidate": 0} for name in ("red.png", "gone.png")]
    sidecar["meta"]["classes"] = ["cat", "dog"]
    sidecar["meta"]["parity"]["worst"], sidecar["meta"]["parity_folder"] = worst, str(folder)
    write(run / "model.onnx.json", sidecar)
    page = render([run])
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)">', page)
    assert [name for _, name in found] == ["red.png"]
    picture = Image.open(io.BytesIO(base64.b64decode(found[0][0])))
    assert picture.size == (64, 96)
    assert np.abs(np.asarray(picture).mean((0, 1)) - (200, 30, 30)).max() < 5
    assert "gone.png dog cat" in text_of(page)


def test_the_state_before_is_left_out_when_its_own_run_is_shown(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parent = tmp_path / "runs" / "adapt-net-1"
    parent.mkdir(parents=True)
    assert "before prune" in render([run])
    assert "before prune" not in render([parent, run])


@pytest.mark.parametrize(
    "lost", ["done.json", "model.safetensors", "metrics.jsonl", "model.onnx.json", "config.toml"]
)
def test_what_is_missing_is_left_out(run: Path, lost: str) -> None:
    (run / lost).unlink()
    said = text_of(render([run]))
    assert "None" not in said
    assert ("Not finished" in said) == (lost == "done.json")


def test_an_empty_and_a_damaged_run_still_have_a_page(tmp_path: Path) -> None:
    parsed(render([tmp_path]))
    for name in ("done.json", "model.safetensors", "config.toml", "bench.json", "model.onnx.json"):
        (tmp_path / name).write_text("}{")
    parsed(render([tmp_path]))


def test_names_are_never_markup(run: Path) -> None:
    write(run / "done.json", {"command": EVIL, "model": EVIL, "finished": EVIL, "results": {EVIL: EVIL}})
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, EVIL: s, "stage": EVIL}) + "\n" for s in (1, 2))
    )
    write(run / "bench.json", [bench_row(EVIL, 2.0, 0.5)])
    page = render([run])
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; expected a run folder"):
        facts.read(tmp_path / "none")


@pytest.mark.parametrize(
    "points",
    [
        [(0, 1.0)],
        [(0, 1.0), (1, 1.0)],
        [(0, math.nan), (1, 2.0)],
        [(5, -1e9), (6, 1e-9)],
        [(s, s * s) for s in range(5000)],
    ],
)
def test_any_curve_can_be_drawn(points: list[tuple[float, float]]) -> None:
    svg = str(plots.curve(points, "loss", mark=1.0))
    assert svg.startswith("<svg")
    assert "nan" not in svg.replace("nuance", "")
    assert len(svg) < 20_000


def test_no_finite_point_is_no_curve() -> None:
    assert plots.curve([(0, math.inf)], "loss") == ""


def test_the_ends_of_a_curve_lie_on_the_axes() -> None:
    svg = str(plots.curve([(0, 0.0), (10, 1.0)], "loss"))
    (line,) = re.findall(r'points="([^"]+)"', svg)
    (left, low), (right, high) = ([float(v) for v in pair.split(",")] for pair in line.split())
    assert (left, right) == (46.0, 310.0)
    assert low > high, "up is more"
