"""What the cuts of a job came to: one plan of the dense network, and warnings where it is not what was asked for."""

from __future__ import annotations

from collections.abc import Mapping

from edgeprune.errors import PlanError
from edgeprune.methods import parts
from edgeprune.methods.job import Job
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import surgery
from edgeprune.prune.search import FULL_ENOUGH, LATENCY


def whole_plan(job: Job) -> PruningPlan | None:
    """All cuts as one, in the widths of the dense network; None when it does not have them as such couplings."""
    widths = job.dense_widths
    if not job.plans or not set(job.kept) <= set(widths):
        return None
    cuts = tuple(Cut(root, widths[root], tuple(kept)) for root, kept in sorted(job.kept.items()))
    try:
        for cut in cuts:
            surgery.check(job.dense_couplings[cut.root], cut)
    except PlanError:
        return None
    low_rank = tuple(one for plan in job.plans for one in plan.low_rank)
    return PruningPlan(cuts, low_rank, job.plans[-1].why)


def unfilled(job: Job) -> list[str]:
    """A warning when less than 0.98 of the tightest budget is used, with the step that would exceed it."""
    why = job.plans[-1].why if job.plans else {}
    asked, got, step = (why.get(key) or {} for key in ("requested", "achieved", "next"))
    shares = {kind: got[kind] / ceiling for kind, ceiling in asked.items() if kind in got}
    if not step or not shares or LATENCY in asked or max(shares.values()) >= FULL_ENOUGH:
        return []
    kind = max(shares, key=lambda k: shares[k])
    return [
        f"{shares[kind]:.1%} of the budget on {kind} is used: the next step, {step['layer']} from {step['from']} to "
        f"{step['to']} channels, would use {step['of_the_budget']:.1%}"
    ]


def exceeded(job: Job, got: Mapping[str, float]) -> list[str]:
    """A warning for each ceiling that the finished network is above: a plan that did not come true."""
    ceilings = {} if job.budget.empty else parts.limits(job)[-1]
    return [
        f"the network has {got[kind]:,.0f} {kind}, more than the {ceiling:,.0f} that were asked for"
        for kind, ceiling in ceilings.items()
        if kind in got and got[kind] > ceiling * (1 + 1e-9)
    ]
