"""Knobs keep their types, and a wrong word says what would have been right."""

import json
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from edgeprune import catalog
from edgeprune.cli.app import main
from edgeprune.commands import knobs
from edgeprune.commands.knobs import parse
from edgeprune.errors import UsageError
from edgeprune.options import AdaptOptions, PruneOptions


@dataclass(frozen=True)
class Knobs:
    temperature: float = 2.5
    rounds: int = 3
    hard: bool = False
    kind: Literal["cubic", "linear"] = "cubic"
    share: float | None = None


def test_values_take_the_type_of_their_field() -> None:
    words = ["temperature=2", "rounds=4", "hard=yes", "kind=linear", "share=1"]
    assert Knobs(**parse(Knobs, words, "mcc")) == Knobs(2.0, 4, True, "linear", 1.0)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("temprature=1", "mcc has no knob 'temprature': did you mean 'temperature'"),
        ("rounds=many", "expected a whole number"),
        ("hard=perhaps", "expected true or false"),
        ("kind=cubid", "did you mean 'cubic'"),
        ("share=most", "expected a number"),
        ("rounds", "expected name=value"),
    ],
)
def test_helpful_errors(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(Knobs, [word], "mcc")


@pytest.mark.parametrize("name", catalog.OBJECTIVES)
def test_every_knob_of_an_objective_is_explained(name: str) -> None:
    found = knobs.of(replace(AdaptOptions(), objective=name))
    assert [(k["name"], len(k["means"]) > 3) for k in found.knobs] == [(k["name"], True) for k in found.knobs]


@pytest.mark.parametrize("name", catalog.METHODS)
def test_every_knob_of_a_method_is_explained(name: str) -> None:
    found = knobs.of(replace(PruneOptions(), method=name)).to_json()
    assert [k["name"] for k in found["knobs"] if len(k["means"]) <= 3] == []
    assert found["what"] == catalog.METHODS[name].summary


def test_no_knobs_are_told_too() -> None:
    assert knobs.of(replace(PruneOptions(), method="distill")).also.startswith(
        "it has no knobs of its own; objective."
    )
    assert knobs.of(replace(PruneOptions(), method="tcp")).also.startswith("objective.NAME=value sets a knob")
    assert knobs.of(replace(AdaptOptions(), objective="source")).also == ""


def test_knobs_are_shown_by_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else has to make sense then."""
    words = ["adapt", "any", "--objective", "shot", "--set", "help", "--target", "nowhere"]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Paper Liang et al." in shown
    assert all(word in shown for word in ("beta", "0.3", "a number", "true or false"))
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["paper"] == catalog.OBJECTIVES["shot"].paper


def test_knobs_need_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--set", "help", "--method", "admp", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["paper"] == catalog.METHODS["admp"].paper
    assert main(["prune", "--set=help"]) == 0
    capsys.readouterr()
    for words, said in (
        (["prune", "m", "x", "--set", "help"], "unexpected extra argument(s) (x)"),
        (["prune", "--set", "help", "--macs"], "'--macs' requires an argument"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err
    assert main(["prune", "--set", "help", "--metod", "admp"]) == 2
    assert "No such option: --metod" in capsys.readouterr().err
    assert main(["prune", "--method", "admp"]) == 2
    assert "Missing argument 'MODEL'" in capsys.readouterr().err


def test_meanings_are_read_from_a_docstring() -> None:
    text = """weight: peak, in nats. near, far: neighbours;
        see eq. 3. kind: "a", or\n "b"."""
    said = {"weight": "peak, in nats", "near": "neighbours; see eq. 3", "kind": '"a", or "b"'}
    assert knobs.meanings(text) == {**said, "far": said["near"]}
    assert knobs.meanings("Nothing is explained here.") == {}


def test_knobs_say_what_they_take() -> None:
    rows = {
        k["name"]: (k["default"], k["takes"])
        for k in knobs.of(replace(AdaptOptions(), objective="auto")).knobs
    }
    assert rows["near"] == ("10", "a whole number")
    assert rows["sure"] == ("by itself", "a number")
    assert rows["view"] == ("auto", "auto, strong, weak")
    assert rows["partial"] == ("false", "true or false")
