"""The ablations ask what the methods can answer: each line is a command that can be typed, and a row of its own."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import ablations, accuracy
from benchmarks.accuracy import Place, Row
from benchmarks.cases import Case, pruning
from benchmarks.tasks import TASKS
from edgeprune import catalog
from edgeprune.cli.app import main
from edgeprune.commands.knobs import parse


@pytest.mark.parametrize("one", ablations.ABLATIONS, ids=lambda one: one.name)
def test_a_line_is_of_a_method_and_its_knobs(one: ablations.Ablation) -> None:
    kind = catalog.load(catalog.METHODS, one.method, "method")
    set_to = kind(**parse(kind, one.knobs, one.method))
    assert one.knobs == () or set_to != kind(), "what is set is the default"
    assert dataclasses.is_dataclass(set_to)
    flags = zip(one.words[::2], one.words[1::2], strict=True)
    assert all(flag.startswith("--") and not value.startswith("--") for flag, value in flags)


def test_every_row_is_its_own_and_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    found = ablations.cases((0, 1))
    assert len({case.key for case in found}) == len(found)
    assert {case.task for case in found} == set(TASKS)
    free = [case for case in found if case.task == "cifar-jpeg"]
    assert {case.name.partition("+")[0] for case in free} == {"auto", "tana", "adapt-then-prune", "uniform"}
    assert not [case.name for case in free if "source" in case.name or "labels" in case.name]
    accuracy.show(found, [])
    assert "prune/digits/tcp+variant=code/macs=0.5/1" in capsys.readouterr().out


def test_a_row_is_a_command_that_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the network, which is not here: the words themselves are understood."""
    monkeypatch.setattr(accuracy, "made", lambda case, place: {})
    there = dataclasses.replace(TASKS["digits"], images=lambda work, data: (tmp_path, tmp_path, tmp_path))
    monkeypatch.setitem(TASKS, "digits", there)
    case = next(c for c in ablations.cases((0,)) if c.task == "digits" and c.name == "tcp+variant=max")
    words = accuracy.command(case, Place(None, tmp_path, "cpu"))
    assert "--method tcp --macs 0.5 --set variant=max" in shlex.join(words)
    assert main(words[1:]) != 0
    assert (
        "adapt-digits-auto-0' is neither a model" in capsys.readouterr().err
    )  # and no word of the command is wrong


def test_table() -> None:
    facts = {"task": "digits", "budget": "macs=0.5", "dense_macs": 100, "dense_params": 10}
    facts |= {"macs": 50, "params": 3}

    def row(name: str, seed: int, begins: str, chosen: float) -> Row:
        known = {"key": f"{name}/{seed}", "name": name, "seed": seed, "begins_with": begins}
        return {**facts, **known, "chosen": chosen}

    rows = [row("tcp+variant=code", seed, "a", 90.0 + seed) for seed in (0, 2)]
    failed = {**facts, "key": "x", "name": "tcp", "failed": "exit 1: no"}
    lines = ablations.table([*rows, failed]).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| digits | macs=0.5 | tcp+variant=code | the released code's score")
    assert lines[2].endswith("| 91.0 ± 1.4 | 0.50 | 0.30 | - |")
    more = row("tcp", 0, "a", 88.0), row("tcp", 1, "a", 10.0), row("tcp", 2, "made anew", 10.0)
    lines = ablations.table([*rows, *more]).splitlines()
    assert lines[2].endswith("| 0.50 | 0.30 |  |"), "the method itself"
    assert lines[3].endswith("| 91.0 ± 1.4 | 0.50 | 0.30 | +2.0 (1) |"), (
        "of the one network that both began with"
    )


def test_commands_in_results_name_no_place_of_this_machine(tmp_path: Path) -> None:
    place = Place(tmp_path / "data", tmp_path / "work", "cpu")
    words = [
        "edgeprune",
        "prune",
        str(place.work / "a"),
        "--target",
        str(tmp_path / "data" / "t"),
        "--weights",
    ]
    said = accuracy.portable([*words, "/elsewhere/w.pth", "--score", "two words"], place)
    assert said == (
        "edgeprune prune runs/accuracy/a --target $EDGEPRUNE_DATA/t --weights w.pth --score 'two words'"
    )


def test_both_scripts_mean_the_same_command_by_one_key() -> None:
    """They share run folders and keys."""
    mine = {case.key: case.words for case in ablations.cases((0,))}
    theirs = {case.key: case.words for case in pruning((0,))}
    shared = mine.keys() & theirs.keys()
    assert len(shared) > 20
    assert {key: mine[key] for key in shared} == {key: theirs[key] for key in shared}


def test_a_row_cut_from_a_network_that_was_made_anew_is_open_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.json"
    case = next(c for c in pruning((0,)) if c.key == "prune/digits/tcp/macs=0.5/0")
    start = {"key": "adapt/digits/auto/0", "stage": "adapt", "task": "digits", "name": "auto", "seed": 0}
    old = {"key": case.key, "stage": "prune", "task": "digits", "name": "tcp", "seed": 0, "begins_with": "a"}
    accuracy.save([{**start, "weights": "b", "chosen": 91.0}, {**old, "chosen": 80.0}], file)
    monkeypatch.setattr(accuracy, "row", lambda c, place: {**old, "begins_with": "b", "chosen": 85.0})
    place = Place(None, tmp_path, "cpu")
    accuracy.work([case], place, file)
    assert [r["chosen"] for r in accuracy.load(file)] == [91.0, 85.0]
    monkeypatch.setattr(accuracy, "row", lambda c, place: pytest.fail("it is done"))
    accuracy.work([case], place, file)


Counted = Callable[[Place, Case], None]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Makes the tool one that ends at once; its accuracy is how often it ran."""

    def put(place: Place, case: Case) -> None:
        ran: list[list[str]] = []

        def tool(program: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            assert "--resume" not in program
            ran.append(program)
            place.run(case).mkdir()
            (place.run(case) / "done.json").write_text(json.dumps({"results": {"accuracy": len(ran)}}))
            return subprocess.CompletedProcess(program, 0, "", "")

        monkeypatch.setattr("subprocess.run", tool)

    return put


def test_a_finished_run_of_another_command_is_not_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    place, case = Place(None, tmp_path, "cpu"), Case("adapt", "digits", "mcc", 0)
    counted(place, case)
    cloud = tmp_path / "cloud"
    cloud.mkdir()
    for weights, steps, runs in (("a", "1", 1), ("a", "1", 1), ("a", "2", 2), ("b", "2", 3), ("b", "2", 3)):
        (cloud / "model.safetensors").write_text(weights)
        words = ["edgeprune", "adapt", str(cloud), "--steps", steps]
        monkeypatch.setattr(accuracy, "command", lambda c, p, w=words: w)
        assert accuracy.made(case, place)["accuracy"] == runs


@pytest.mark.parametrize(("stage", "runs"), [("prune", 2), ("adapt", 1)])
def test_a_finished_cut_of_other_code_is_made_anew_but_no_network_to_begin_with(
    stage: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    place, case = Place(None, tmp_path, "cpu"), Case(stage, "digits", "auto", 0)
    counted(place, case)
    monkeypatch.setattr(accuracy, "command", lambda c, p: ["edgeprune", stage, str(tmp_path)])
    assert [accuracy.made(case, place)["accuracy"] for _ in range(2)] == [1, 1]
    monkeypatch.setattr(accuracy, "code", lambda: "another")
    assert [accuracy.made(case, place)["accuracy"] for _ in range(2)] == [runs, runs]
