"""The page stands alone, holds what the run holds and no more, and no name ever becomes markup."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from edgeprune.errors import DataError
from edgeprune.report import facts, plots
from edgeprune.report.page import render
from tests.report.conftest import bench_row, text_of, write

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
    for part in (
        "package.nets:net",
        "objective shot",
        "whose weights are kept",
        "Labels were used",
        "stem.*",
    ):
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
        {"cut": 1, "agreement_after_cut": 0.25},
        {"cut": 2, "agreement_after_cut": 0.5, "agreement_after_recovery": 0.75},
    ]
    write(run / "done.json", done)
    page = render([run])
    parsed(page)
    said = text_of(page)
    assert "Cut Agreement after cut Agreement after recovery 1 25.0% - 2 50.0% 75.0%" in said


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


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("mixval", "The dashed line is step 6, chosen without labels, by mixval."),
        (None, "The dashed line is step 6, whose weights are kept."),
    ],
)
def test_who_chose_the_step_is_said(run: Path, by: str | None, said: str) -> None:
    done = json.loads((run / "done.json").read_text())
    done["results"]["chosen_by"] = by
    write(run / "done.json", done)
    assert said in text_of(render([run]))
