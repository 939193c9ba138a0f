"""A plan for a ceiling on latency, met as measured: made in two ways, and the images choose.

The knapsack over the layer table spares what is slow here; a ceiling on MACs, lowered until the clock is satisfied,
spares it less, and is the better plan where damage does not add up as the knapsack takes it to. Ours: both are made,
and that which agrees more with the dense network on the target images, without labels, is taken.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from edgeprune import inference
from edgeprune.errors import BudgetNotMet
from edgeprune.methods.job import Job
from edgeprune.plan import PruningPlan
from edgeprune.prune import budget, deadline, macs, surgery
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Rules
from edgeprune.prune.search import LATENCY

Maker = Callable[[float], PruningPlan]


def plan(
    job: Job, found: Couplings, scores: Mapping[str, Tensor], ceilings: Mapping[str, float], rules: Rules
) -> PruningPlan:
    """The plan within absolute `ceilings`, one of them on "latency" (ms).

    Measured where the device is here, to the band of `deadline.meet`, else as predicted. `why` of a measured plan
    gains "agreement" of each way that was tried. BudgetNotMet names the nearest.
    """
    costs = macs.trace(job.network.module, job.network.example(), found)
    predictor, clock = job.timing.predictor(costs, job.dense_costs), job.timing.clock
    limit = ceilings[LATENCY]

    def by_table(milliseconds: float) -> PruningPlan:
        return budget.choose(costs, found, scores, {**ceilings, LATENCY: milliseconds}, rules, predictor)

    if clock is None:
        return by_table(limit)
    last = job.budget.deadline(job.dense_ms)
    band = deadline.ROUGH if last is not None and limit > last else deadline.BAND

    def cut(one: PruningPlan) -> nn.Module:
        slim = copy.deepcopy(job.network.module)
        surgery.apply(slim, one, found)
        return slim

    timed = clock
    ways: dict[str, Maker] = {"latency": by_table}
    if rules.rank == "global":  # else widths follow from one share, however it is found
        now = float(predictor.at(costs.full))
        ways["macs"] = by_macs(costs, found, scores, ceilings, rules, now)
    return better(ways, lambda one: timed(cut(one)), limit, band, lambda one: _agreement(job, cut(one)))


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
        return budget.choose(costs, found, scores, limits, rules)

    return made


def better(
    ways: Mapping[str, Maker],
    measure: Callable[[PruningPlan], float],
    limit: float,
    band: tuple[float, float],
    agreement: Callable[[PruningPlan], float],
) -> PruningPlan:
    """Of the plans that each way meets the deadline with, the one of the highest agreement, the first among equals.

    BudgetNotMet when none does: that of the first way.
    """
    met: dict[str, PruningPlan] = {}
    refused: list[BudgetNotMet] = []
    for name, maker in ways.items():
        try:
            met[name] = deadline.meet(maker, measure, limit, band)
        except BudgetNotMet as err:
            refused.append(err)
    if not met:
        raise refused[0]
    if len(met) == 1:
        return next(iter(met.values()))
    shares = {name: agreement(one) for name, one in met.items()}
    best = met[max(shares, key=lambda name: shares[name])]
    return replace(best, why={**best.why, "agreement": shares})


def _agreement(job: Job, slim: nn.Module) -> float:
    """Share of the job's probe on which a cut network, its statistics re-estimated, says what the dense one says."""
    if job.options.bn_recal:
        inference.reestimate_batchnorm(slim, job.target, job.network.preprocess)
    answers = inference.logits_of(slim, job.probe, job.network.preprocess).argmax(1)
    return float((answers == job.dense_answers).double().mean())
