"""The ablations ask what the methods can answer: each line is a command that can be typed, and a row of its own."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from benchmarks import ablations, accuracy
from benchmarks.accuracy import Place
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
    assert {case.task for case in found} >= {"digits", "pacs"}
    accuracy.show(found, [])
    assert "prune/digits/tcp+variant=code/macs=0.5/1" in capsys.readouterr().out


def test_a_row_is_a_command_that_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the images, which are not here: the words themselves are understood."""
    monkeypatch.setattr(accuracy, "made", lambda case, place: {})
    absent = tmp_path / "absent"
    there = dataclasses.replace(TASKS["digits"], images=lambda work, data: (absent, absent, absent))
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
    rows = [
        {**facts, "key": str(n), "name": "tcp+variant=code", "chosen": 90.0 + n, "macs": 50, "params": 3}
        for n in (0, 2)
    ]
    rows.append({**facts, "key": "x", "name": "tcp", "failed": "exit 1: no"})
    lines = ablations.table(rows).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| digits | macs=0.5 | tcp+variant=code | the released code's score")
    assert lines[2].endswith("| 91.0 ± 1.4 | 0.50 | 0.30 |")


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
