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
