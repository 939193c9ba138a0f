"""Correction by measurement, on a made-up device."""

from collections.abc import Callable

import pytest

from edgeprune.errors import BudgetNotMet
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import deadline


def planner(full: int = 400) -> Callable[[float], PruningPlan]:
    """A network of `full` channels that is predicted to take a hundredth of a millisecond for each."""

    def plan_for(aim: float) -> PruningPlan:
        width = min(full, int(aim * 100))
        if width < 8:
            raise BudgetNotMet("the smallest plan possible")
        cuts = (Cut("a", full, tuple(range(width))),) if width < full else ()
        return PruningPlan(cuts)

    return plan_for


def width(plan: PruningPlan) -> int:
    return len(plan.cuts[0].keep) if plan.cuts else 400


@pytest.mark.parametrize(
    "device",
    [
        lambda w: w / 100,
        lambda w: 2.5 * w / 100,
        lambda w: 0.4 * w / 100,
        lambda w: 0.5 + (w / 400) ** 2 * 3,
        lambda w: w / 100 + (0.2 if w % 16 else 0.0),
    ],
)
def test_it_lands_in_the_band_on_devices_that_differ(device: Callable[[int], float]) -> None:
    for limit in (0.9, 1.3, 1.5):
        found = deadline.meet(planner(), lambda p: device(width(p)), limit)
        assert 0.95 * limit <= device(width(found)) <= 1.02 * limit
        assert found.why["latency"]["measured_ms"] == device(width(found))
        assert found.why["latency"]["requested_ms"] == limit


def test_less_is_taken_only_when_nothing_more_may_be_kept() -> None:
    assert deadline.meet(planner(), lambda p: width(p) / 100, 9.0).cuts == ()

    def capped(aim: float) -> PruningPlan:  # another ceiling holds at 100 channels
        return planner()(min(aim, 1.0))

    assert width(deadline.meet(capped, lambda p: width(p) / 100, 2.0)) == 100


def test_a_gap_is_said() -> None:
    def step(plan: PruningPlan) -> float:
        return 0.5 if width(plan) < 200 else 2.0

    with pytest.raises(
        BudgetNotMet, match=r"latency 1 ms: none of .* within 0\.95 to 1\.02 .* took 0\.5 ms \(0\.50 of"
    ):
        deadline.meet(planner(), step, 1.0)
    with pytest.raises(BudgetNotMet, match="the smallest plan possible"):
        deadline.meet(planner(), step, 0.01)
