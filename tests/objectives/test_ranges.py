"""A knob of a value that makes no sense is refused, by its name and with what was expected, before anything is read."""

from pathlib import Path
from typing import Any

import pytest

from edgeprune import catalog
from edgeprune.commands.adapt import adapt
from edgeprune.commands.knobs import parse
from edgeprune.errors import UsageError
from edgeprune.objectives.ranges import SHARE, expect
from edgeprune.options import AdaptOptions
from edgeprune.waist import Objective

POSITIVE, WEIGHT, ONE = "a number above 0", "a number of 0 or more", "1 or more"
A_SHARE, SOME, NOT_ALL = "a share in 0..1", "a share above 0, at most 1", "a share in 0..1, below 1"


def knobs_of(objective: str) -> Any:
    kind: type[Objective] = catalog.load(catalog.OBJECTIVES, objective, "objective")
    return kind.Knobs


@pytest.mark.parametrize(
    ("objective", "knob", "bad", "edge", "expected"),
    [
        ("mcc", "temperature", "0", "0.1", POSITIVE),
        ("mcc", "weight", "-1", "0", WEIGHT),
        ("mcc", "ramp", "1.5", "1", A_SHARE),
        ("source", "smoothing", "-0.1", "1", A_SHARE),
        ("fixmatch", "threshold", "1.1", "0", A_SHARE),
        ("fixmatch", "weight", "inf", "0", WEIGHT),
        ("shot", "beta", "-0.3", "0", WEIGHT),
        ("shot", "rare", "-1", "0", WEIGHT),
        ("nrc", "near", "0", "1", ONE),
        ("nrc", "further", "0", "1", ONE),
        ("auto", "information", "nan", "0", WEIGHT),
        ("auto", "pseudo", "-1", "0", WEIGHT),
        ("auto", "sure", "0", "1", SOME),
        ("auto", "near", "-3", "1", ONE),
        ("auto", "flow", "1", "0.99", NOT_ALL),
        ("auto", "rare", "-1", "0", WEIGHT),
        ("swmmd", "weight", "-1", "0", WEIGHT),
        ("swmmd", "entropy", "-1", "0", WEIGHT),
        ("swmmd", "momentum", "1.1", "1", A_SHARE),
        ("adabn", "blend", "2", "1", A_SHARE),
        ("cdan", "weight", "-1", "0", WEIGHT),
        ("cdan", "hidden", "0", "1", ONE),
        ("dann", "weight", "nan", "0", WEIGHT),
        ("dann", "hidden", "-2", "1", ONE),
        ("dan", "weight", "-1", "0", WEIGHT),
        ("dan", "source", "-1", "0", WEIGHT),
        ("jan", "weight", "-0.5", "0", WEIGHT),
        ("bnm", "weight", "inf", "0", WEIGHT),
    ],
)
def test_ranges(objective: str, knob: str, bad: str, edge: str, expected: str) -> None:
    kind = knobs_of(objective)
    with pytest.raises(UsageError) as found:
        kind(**parse(kind, [f"{knob}={bad}"], objective))
    assert str(found.value) == f"--set {knob}={bad}: expected {expected}"
    kind(**parse(kind, [f"{knob}={edge}"], objective))


@pytest.mark.parametrize("objective", sorted(catalog.OBJECTIVES))
def test_defaults_are_inside(objective: str) -> None:
    knobs_of(objective)()


def test_what_is_left_open_is_not_judged() -> None:
    class Open:
        share = None

    expect(Open(), share=SHARE)


def test_the_command_says_so_before_it_reads_anything(tmp_path: Path) -> None:
    options = AdaptOptions(
        model="nothing:nothing", target=tmp_path, source=tmp_path, objective="mcc", set=("temperature=0",)
    )
    with pytest.raises(UsageError, match="--set temperature=0: expected a number above 0"):
        adapt(options)
