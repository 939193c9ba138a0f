"""A ceiling on latency: of the plans that meet it, the images decide."""

from __future__ import annotations

import pytest

from edgeprune.errors import BudgetNotMet
from edgeprune.methods import latency_plan
from edgeprune.plan import Cut, PruningPlan

BAND = 0.95, 1.02


def maker(name: str, smallest: float = 0.1) -> latency_plan.Maker:
    """Plans of a network of 400 channels at a hundredth of a millisecond each, told apart by their root."""

    def made(milliseconds: float) -> PruningPlan:
        if milliseconds < smallest:
            raise BudgetNotMet(f"{name}: no such plan")
        width = min(400, int(milliseconds * 100))
        return PruningPlan((Cut(name, 400, tuple(range(width))),))

    return made


def took(plan: PruningPlan) -> float:
    return len(plan.cuts[0].keep) / 100


@pytest.mark.parametrize(
    ("shares", "best"),
    [
        ({"table": 0.7, "macs": 0.8}, "macs"),
        ({"table": 0.8, "macs": 0.7}, "table"),
        ({"table": 0.8, "macs": 0.8}, "table"),
    ],
)
def test_the_one_that_agrees_more_is_taken(shares: dict[str, float], best: str) -> None:
    ways = {name: maker(name) for name in shares}
    found = latency_plan.better(ways, took, 2.0, BAND, lambda plan: shares[plan.cuts[0].root])
    assert found.cuts[0].root == best
    assert found.why["agreement"] == shares
    assert 0.95 * 2 <= took(found) <= 1.02 * 2
    assert found.why["latency"]["measured_ms"] == took(found)


def test_one_that_meets_it_is_enough_and_is_not_compared() -> None:
    def never(plan: PruningPlan) -> float:
        raise AssertionError

    ways = {"table": maker("table", smallest=3.0), "macs": maker("macs")}
    assert latency_plan.better(ways, took, 2.0, BAND, never).cuts[0].root == "macs"
    assert latency_plan.better(dict(reversed(ways.items())), took, 2.0, BAND, never).cuts[0].root == "macs"


def test_when_none_meets_it_the_nearest_is_told() -> None:
    def gap(plan: PruningPlan) -> float:
        return 1.5 if took(plan) < 2 else {"table": 4.0, "macs": 2.2}[plan.cuts[0].root]

    none, far, near = maker("table", smallest=3.0), maker("table"), maker("macs")
    for ways in ({"table": far, "macs": near}, {"macs": near, "table": far}, {"table": none, "macs": near}):
        with pytest.raises(BudgetNotMet, match=r"the nearest took 2\.2 ms"):
            latency_plan.better(ways, gap, 2.0, BAND, lambda plan: 1.0)
    with pytest.raises(BudgetNotMet, match="table: no such plan"):
        latency_plan.better({"table": none}, gap, 2.0, BAND, lambda plan: 1.0)
