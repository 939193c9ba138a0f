"""Knobs keep their types, and a wrong word says what would have been right."""

from dataclasses import dataclass
from typing import Literal

import pytest

from edgeprune.commands.knobs import parse
from edgeprune.errors import UsageError


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
        ("rounds=many", "expected a value of type int"),
        ("hard=perhaps", "expected true or false"),
        ("kind=cubid", "did you mean 'cubic'"),
        ("share=most", "expected a value of type float"),
        ("rounds", "expected name=value"),
    ],
)
def test_helpful_errors(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(Knobs, [word], "mcc")
