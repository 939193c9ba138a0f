"""Corrects a latency plan by what the cut network was measured to take, until it is near below the request.

What it must satisfy: a plan is accepted between 0.95 and 1.02 of the request; below 0.95 only when nothing more
may be kept (another ceiling is tighter, or nothing was cut); else BudgetNotMet names the nearest that was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgeprune.errors import BudgetNotMet
from edgeprune.plan import PruningPlan

BAND = 0.95, 1.02
ROUGH = 0.9, 1.1  # for cuts on the way to a smaller network
CENTRE = 0.985
TRIES, ASKED = 8, 24  # plans measured, and plans made, at most
ENDLESS = 1e12
_STEP = 1.6  # an aim changes at most by this factor at once


@dataclass(frozen=True)
class Try:
    """One plan: what the planner was asked for, and what it was measured to take, both in ms."""

    aim: float
    measured: float
    plan: PruningPlan


def meet(
    plan_for: Callable[[float], PruningPlan],
    measure: Callable[[PruningPlan], float],
    limit_ms: float,
    band: tuple[float, float] = BAND,
) -> PruningPlan:
    """The plan whose measured milliseconds are 0.95 to 1.02 of `limit_ms` (or in another `band` around 0.985).

    plan_for(aim): the plan that is predicted to take at most `aim` ms; at most 8 plans are measured. The plan's `why`
    gains "latency": what was requested and measured, and every try. BudgetNotMet names the nearest.
    """
    tries: list[Try] = []
    took: dict[PruningPlan, float] = {}
    aim, most = CENTRE * limit_ms, None
    for _ in range(ASKED):
        try:
            plan = plan_for(aim)
        except BudgetNotMet:
            if not tries:
                raise
            break  # the next smaller plan does not exist
        if plan not in took:
            if len(took) == TRIES:
                break
            took[plan] = measure(plan)
        tries.append(Try(aim, took[plan], plan))
        share = tries[-1].measured / limit_ms
        if band[0] <= share <= band[1]:
            return _told(tries[-1], tries, limit_ms)
        if share < band[0]:
            most = most or plan_for(ENDLESS)
            if most == plan:
                return _told(tries[-1], tries, limit_ms)  # no latency brings more
        aim = _next(tries, limit_ms)
    best = min(tries, key=lambda t: abs(t.measured / limit_ms - CENTRE))
    raise BudgetNotMet(
        f"latency {limit_ms:.3g} ms: none of {len(took)} plans was measured within {band[0]} to {band[1]} of it; "
        f"the nearest took {best.measured:.3g} ms ({best.measured / limit_ms:.2f} of the request): ask for that"
    )


def _next(tries: list[Try], limit_ms: float) -> float:
    """The aim that should be measured at the centre of the band: between the nearest on both sides, if there are."""
    target = CENTRE * limit_ms
    last = tries[-1]
    below = max((t for t in tries if t.measured < target), key=lambda t: t.aim, default=None)
    above = min((t for t in tries if t.measured >= target), key=lambda t: t.aim, default=None)
    if below is None or above is None or below.aim >= above.aim:
        return last.aim * min(max(target / last.measured, 1 / _STEP), _STEP)
    part = (target - below.measured) / (above.measured - below.measured)
    return below.aim + min(max(part, 0.1), 0.9) * (above.aim - below.aim)


def _told(chosen: Try, tries: list[Try], limit_ms: float) -> PruningPlan:
    facts: dict[str, Any] = {
        "requested_ms": limit_ms,
        "measured_ms": chosen.measured,
        "measured_of_requested": chosen.measured / limit_ms,
        "tries": [{"predicted_ms": t.aim, "measured_ms": t.measured} for t in tries],
    }
    return replace(chosen.plan, why={**chosen.plan.why, "latency": facts})
