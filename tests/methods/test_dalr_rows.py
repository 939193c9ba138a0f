"""benchmarks/dalr: rows are what they say, are made once, and the table counts the parameters of equal accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import accuracy, cases, dalr, pages_dalr, tasks
from benchmarks.accuracy import Place
from benchmarks.dalr import Cell, Group
from benchmarks.tasks import TASKS
from edgeprune import checkpoint, inference
from edgeprune.data import folder
from edgeprune.methods.dalr import candidates
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions
from edgeprune.prune import lowrank

Make = Callable[..., Path]


@pytest.fixture
def place(two_classes: Path, tmp_path: Path, make_images: Make, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A task with the small digits network, adapted already."""
    source, target = make_images(tmp_path / "s", count=7), make_images(tmp_path / "t", count=6)
    task = replace(dalr.FC, name="small", images=lambda work, data: (source, target, target), trust=())
    monkeypatch.setattr(dalr, "_adapted", lambda task, seed, place: two_classes)
    return Place(None, tmp_path, "cpu", {**TASKS, "small": task})


def layer_of(run: Path) -> str:
    network = checkpoint.read(run)
    return candidates(network.module, network.classifier)[0]


def test_rows(place: Place, two_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = layer_of(two_classes)
    dense = checkpoint.read(two_classes)
    m, n = lowrank.matrix(dense.module.get_submodule(name)).shape
    full = float(min(m, n))
    group = Group("small", name, (2.0, full))
    cells = [
        Cell(group, form, rank, 0) for form in ("svd", "centred", "centred-source") for rank in group.ranks
    ]
    file = tmp_path / "rows.json"
    dalr.work(cells, place, 1000, file)
    rows = {row["key"]: row for row in accuracy.load(file)}
    assert set(rows) == {cell.key for cell in cells}
    test = folder.labelled(place.tasks["small"].images(tmp_path, None)[2], dense.preprocess, dense.classes)
    whole = round(100 * inference.evaluate(dense, test), 2)
    for row in rows.values():
        assert row["whole"] == whole
        assert row["params"] == row["rank"] * (m + n)
        assert row["dense_params"] == m * n
        assert row["images"] == {"target": 12, "source": 14, "test": 12}
        if row["rank"] == full and row["form"] == "svd":
            assert (row["accuracy"], row["agreement"]) == (whole, 1.0)  # nothing is lost at full rank
    capsys.readouterr()
    dalr.work(cells, place, 1000, file)
    assert capsys.readouterr().out == ""  # none is made twice


def test_each_form_sees_its_domain(place: Place, two_classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    factors = lowrank.factors

    def spy(weight: Any, bias: Any, moments: Any, rank: int, form: str, ridge: float) -> Any:
        seen.append((form, moments.count))
        return factors(weight, bias, moments, rank, form, ridge)

    monkeypatch.setattr(lowrank, "factors", spy)
    bench = dalr.Bench("small", 0, place, 1000)
    group = Group("small", layer_of(two_classes), (0.5,))
    for form in ("dalr", "dalr-source"):
        assert bench.row(Cell(group, form, 0.5, 0))["form"] == form
    assert [form for form, _ in seen] == ["dalr", "dalr"]
    assert seen[0][1] * 14 == seen[1][1] * 12  # 12 target and 14 source images


def test_equal_accuracy() -> None:
    def row(rank: float, accuracy: float, form: str = "svd") -> dict[str, Any]:
        facts = {"task": "fc", "layers": "fc6", "form": form, "whole": 90.0, "dense_params": 1000}
        return {**facts, "rank": rank, "accuracy": accuracy, "params": int(10 * rank)}

    rows = [row(4, 89.5), row(8, 80.0), row(16, 89.0), row(32, 90.0)]
    assert pages_dalr.needed(rows) == 160  # rank 4 was luck: a larger rank is worse
    assert pages_dalr.needed([row(4, 50.0)]) is None
    lines = pages_dalr.table([*rows, row(4, 89.9, "centred")]).splitlines()
    assert lines[0] == "fc, fc6: accuracy in %, 90.0 unchanged"
    assert lines[-2] == "| svd | 89.5 | 80.0 | 89.0 | 90.0 | 160 of 1,000 |"
    assert lines[-1] == "| centred | 89.9 |  |  |  | 40 of 1,000 |"


@pytest.mark.parametrize(
    ("svd", "said"),
    [
        (((4, 50.0), (8, 89.5)), "2.0 times with centred: no"),
        (((4, 50.0), (16, 89.5)), "4.0 times with centred: yes"),
        (((4, 50.0), (8, 50.0)), "more than 2.0 times with centred: open"),
        (((4, 50.0), (32, 50.0)), "more than 8.0 times with centred: yes"),
    ],
)
def test_the_claim_is_a_ratio_of_parameters(svd: tuple[tuple[float, float], ...], said: str) -> None:
    facts = {"task": "fc", "layers": "fc6", "whole": 90.0, "dense_params": 1000}
    ours: list[dict[str, Any]] = [{**facts, "form": "centred", "rank": 4, "accuracy": 89.9, "params": 40}]
    rows = [*ours, *({**facts, "form": "svd", "rank": r, "accuracy": a, "params": 10 * r} for r, a in svd)]
    assert pages_dalr.verdicts(rows)[-1] == f"- fc, fc6: {said}"
    worse = [{**row, "accuracy": 50.0} if row["form"] == "centred" else row for row in rows]
    assert "within 1 point centred needs more than any rank here" in pages_dalr.verdicts(worse)[-1]


def test_what_svd_takes_for_as_much() -> None:
    facts = {"task": "imagenet", "layers": "classifier", "whole": 100.0, "dense_params": 5000}

    def row(form: str, rank: float, accuracy: float) -> dict[str, Any]:
        return {**facts, "form": form, "rank": rank, "accuracy": accuracy, "params": int(10 * rank)}

    svd = [row("svd", 8, 10.0), row("svd", 16, 20.0), row("svd", 32, 30.0)]
    ours = [row("dalr", 8, 30.0), row("dalr", 16, 31.0), row("dalr", 32, 99.5)]
    assert pages_dalr.as_good(svd, 20.0) == 160
    assert pages_dalr.as_good(svd, 30.5) is None
    (line,) = pages_dalr.verdicts([*svd, *ours])[6:]
    assert line == (
        "- imagenet, classifier: more than 1.0 times with dalr: open; "
        "at rank 8: 4.0 times, 16: more than any rank here"
    )
    assert pages_dalr.table([*svd, *ours]).startswith("imagenet, classifier: answers that agree with")


def test_a_classifier_alone_is_measured_on_what_enters_it(
    place: Place, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no image has a label: agreement on the half that the pair was not solved on."""
    small = replace(place.tasks["small"], name=dalr.IMAGENET.name)
    monkeypatch.setattr(dalr, "_as_it_comes", lambda place: checkpoint.read(two_classes))
    bench = dalr.Bench("imagenet", 0, replace(place, tasks={"imagenet": small}), 1000)
    assert [len(bench.images[name]) for name in ("target", "test")] == [6, 6]
    assert not set(bench.images["target"].names) & set(bench.images["test"].names)
    name = bench.network.classifier
    full = float(min(lowrank.matrix(bench.network.module.get_submodule(name)).shape))
    row = bench.row(Cell(Group("imagenet", name, (full,)), "svd", full, 0))
    assert (row["accuracy"], row["whole"], row["agreement"]) == (100.0, 100.0, 1.0)
    slim = bench._slim(Cell(Group("imagenet", name, (1,)), "dalr", 1, 0))[0]
    whole = inference.logits_of(slim.module, bench.images["test"], slim.preprocess).argmax(1)
    assert torch.equal(bench.answers(slim, name, "test"), whole)


def test_the_network_of_the_claim() -> None:
    words = ModelOptions(weights="none", classes="10", size=32)
    network, _ = open_network(dalr.SPEC, words)
    wide = [tuple(network.module.get_submodule(name).weight.shape) for name in ("fc6", "fc7")]  # type: ignore[arg-type]
    assert wide == [(1024, 512), (1024, 1024)]
    assert network.classifier == "classifier"
    assert network.module.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert {group.task for group in dalr.GROUPS} <= {"fc", "imagenet", *TASKS}
    assert len({cell.key for cell in dalr.cells((0, 1))}) == len(dalr.cells((0, 1)))


def test_a_few_labelled_images(tmp_path: Path, make_images: Make) -> None:
    whole = make_images(tmp_path / "whole", count=6)
    found = tasks.few(whole, tmp_path / "few", seed=3, count=2)
    files = sorted(found.rglob("*.png"))
    assert [f.parent.name for f in files] == ["cat", "cat", "dog", "dog"]
    assert all(f.read_bytes() == (whole / f.parent.name / f.name).read_bytes() for f in files)
    assert tasks.few(whole, tmp_path / "few", seed=4, count=3) == found  # there already
    other = tasks.few(whole, tmp_path / "other", seed=3, count=2)
    assert [f.name for f in sorted(other.rglob("*.png"))] == [f.name for f in files]


def test_rows_with_labels_are_commands(
    tmp_path: Path, make_images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_images(tmp_path / "t", count=12)
    monkeypatch.setattr(accuracy, "made", lambda case, place: {})
    task = replace(TASKS["digits"], images=lambda work, data: (None, target, target))
    place = Place(None, tmp_path, "cpu", {**TASKS, "digits": task})
    rows = {c.name: c for c in cases.pruning((0,)) if c.task == "digits" and c.budget == "macs=0.5"}
    assert "uniform" in rows
    for name in cases.LABELLED:
        words = accuracy.command(rows[name], place)
        few = Path(words[words.index("--labelled-target") + 1])
        assert len(list(few.rglob("*.png"))) == 20
    assert "--labelled-target" not in accuracy.command(rows["tana"], place)
