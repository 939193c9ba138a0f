"""A plan for a ceiling on latency, met as measured: made in three ways, and the images choose.

The knapsack over the layer table spares what is slow here; a ceiling on MACs, lowered until the clock is satisfied,
spares it less, and is the better plan where damage does not add up as the knapsack takes it to; one width for all is
better still where scores of layers mislead. Ours: all are made, and that which agrees most with the dense network on
the target images, without labels, is taken.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial

from torch import Tensor, nn

from edgeprune.errors import BudgetNotMet
from edgeprune.methods import recalibrate
from edgeprune.methods.job import Job
from edgeprune.plan import PruningPlan
from edgeprune.prune import budget, deadline, macs, surgery
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Rules
from edgeprune.prune.search import LATENCY

Maker = Callable[[float], PruningPlan]


def choose(
    job: Job, found: Couplings, scores: Mapping[str, Tensor], ceilings: Mapping[str, float], rules: Rules
) -> PruningPlan:
    """The plan within absolute `ceilings`, one of them on "latency" (ms).

    Measured where the device is here, to the band of `deadline.meet` (a wide one where more cuts follow), else as
    predicted. One way alone, the table's, where the job is blind or layers are not ranked globally. BudgetNotMet names
    the nearest.
    """
    costs = macs.trace(job.network.module, job.network.example(), found)
    predictor, clock = job.timing.predictor(costs, job.dense_costs), job.timing.clock
    limit = ceilings[LATENCY]

    def by_table(milliseconds: float) -> PruningPlan:
        return budget.choose(costs, found, scores, {**ceilings, LATENCY: milliseconds}, rules, predictor)

    if clock is None:
        return by_table(limit)

    twin = cache(partial(recalibrate.twin, job))  # one way may be all there is, and is not compared

    def measure(plan: PruningPlan) -> float:
        return clock(_cut(job.network.module, plan, found))

    def agreement(plan: PruningPlan) -> float:
        slim = _cut(job.network.module, plan, found)
        if job.options.bn_recal:
            theirs = twin()
            recalibrate.after(job, slim, None if theirs is None else _cut(theirs, plan, found))
        return job.agreement(slim)

    ways: dict[str, Maker] = {"table": by_table}
    # ranked otherwise, widths follow from one share, however it is found
    if rules.rank == "global" and not job.blind:
        now, even = float(predictor.at(costs.full)), replace(rules, rank="local")
        ways["macs"] = by_macs(costs, found, scores, ceilings, rules, now)
        ways["uniform"] = by_macs(costs, found, scores, ceilings, even, now)
    last = job.budget.deadline(job.dense_ms)
    rough = job.rough or (last is not None and limit > last)
    return better(ways, measure, limit, deadline.ROUGH if rough else deadline.BAND, agreement)


def _cut(module: nn.Module, plan: PruningPlan, found: Couplings) -> nn.Module:
    """A copy of a network, cut."""
    slim = copy.deepcopy(module)
    surgery.apply(slim, plan, found)
    return slim


def by_macs(
    costs: macs.Costs,
    found: Couplings,
    scores: Mapping[str, Tensor],
    ceilings: Mapping[str, float],
    rules: Rules,
    whole_ms: float,
) -> Maker:
    """Plans of milliseconds that take them as a share of the MACs; whole_ms: of the network as `costs` has it."""
    whole = float(costs.macs(costs.full))
    others = {kind: ceiling for kind, ceiling in ceilings.items() if kind != LATENCY}

    def made(milliseconds: float) -> PruningPlan:
        share = min(1.0, milliseconds / whole_ms) * whole
        limits = {**others, "macs": min(share, others.get("macs", share))}
        plan = budget.choose(costs, found, scores, limits, rules)
        # What was asked for, in place of the means to it.
        return replace(plan, why={**plan.why, "requested": {**others, LATENCY: milliseconds}, "next": None})

    return made


def better(
    ways: Mapping[str, Maker],
    measure: Callable[[PruningPlan], float],
    limit: float,
    band: tuple[float, float],
    agreement: Callable[[PruningPlan], float],
) -> PruningPlan:
    """Of the plans that each way meets the deadline with, the one of the highest agreement, the first among equals.

    `why` gains "way", and "agreement" of each when several met it. BudgetNotMet when none does, of the way that came
    nearest.
    """
    met: dict[str, PruningPlan] = {}
    refused: list[tuple[float, BudgetNotMet]] = []
    for name, maker in ways.items():
        took: list[float] = []

        def noted(plan: PruningPlan, took: list[float] = took) -> float:
            took.append(measure(plan))
            return took[-1]

        try:
            met[name] = deadline.meet(maker, noted, limit, band)
        except BudgetNotMet as err:
            refused.append((min((abs(t / limit - deadline.CENTRE) for t in took), default=math.inf), err))
    if not met:
        raise min(refused, key=lambda one: one[0])[1]
    shares = {name: agreement(plan) for name, plan in met.items()} if len(met) > 1 else {}
    way = max(met, key=lambda name: shares.get(name, 0.0))
    told = {"way": way, **({"agreement": shares} if shares else {})}
    return replace(met[way], why={**met[way].why, **told})
