"""Domain-adaptive low rank: layers become pairs in closed form from target activations, without labels or training.

The paper's (Masana et al., ICCV 2017): the closed form of fully connected layers. Ours: convolutions, and ranks by
the share of output energy that is lost for each MAC, parameter or millisecond saved, instead of labelled validation
accuracy. With a budget on MACs or latency, layers and pairs are timed, and a pair is kept only where it is faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from edgeprune import inference
from edgeprune.errors import MissingHere, PlanError, UsageError, nearest
from edgeprune.methods import parts, recalibrate, work
from edgeprune.methods.job import Job
from edgeprune.methods.ranks import Choice, Ladders, Look, allocate, ladders
from edgeprune.objectives.ranges import AT_LEAST_ONE, NOT_NEGATIVE, expect
from edgeprune.options import PruneOptions
from edgeprune.plan import LowRank, PruningPlan
from edgeprune.prune import deadline, lowrank, macs, pair_times, surgery
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.pair_times import PairTime
from edgeprune.prune.search import LATENCY


@dataclass(frozen=True)
class DALR:
    """form: truncated SVD, the same with a bias fitted to the target's mean, the paper's closed form, or that of
    activations less their mean. ridge: times the mean energy of an input. positions: patches an image.

    measured: with --macs, a pair that is no faster than its layer on this machine stays a layer; false counts MACs
    alone. With --latency pairs are timed in any case, with --params alone never.
    """

    form: Literal["svd", "svd-bias", "dalr", "centred"] = "centred"
    ridge: float = 1e-3
    positions: int = 16
    measured: bool = True

    def __post_init__(self) -> None:
        expect(self, ridge=NOT_NEGATIVE, positions=AT_LEAST_ONE)
        if self.form not in lowrank.FORMS:
            raise UsageError(f"form={self.form}: no such closed form; {nearest(self.form, lowrank.FORMS)}")

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        words = ("score", "rank", "iterations", "schedule", "between", "floor")
        return dict.fromkeys(words, "it cuts no channels, and once")

    def idle(self, options: PruneOptions) -> dict[str, str]:
        """Knobs that do less, or nothing, with these options -> why."""
        if options.latency is not None:
            return {"measured": "with --latency pairs are timed in any case"}
        return {} if options.macs else {"measured": "without --macs or --latency nothing is timed"}

    def __call__(self, job: Job) -> None:
        """Replace layers of `job.network` by pairs until the budget holds, then recover."""
        self.preview(job)
        work.learn(job, parts.chosen_objective(job), job.options.recover, "recover-dalr")

    def preview(self, job: Job) -> None:
        """Replace layers by pairs until the budget holds and learn nothing: what --dry-run shows."""
        number = len(job.trace) + 1
        if parts.taken_up(job, number) is None:
            with parts.looking(job):
                self._cut(job, number)

    def _cut(self, job: Job, number: int) -> None:
        ceilings = parts.limits(job)[-1]
        module = job.network.module
        able = [
            name for name in candidates(module, job.network.classifier) if not _kept(name, job.options.keep)
        ]
        looks = self._looks(job, able)
        times = self._times(job, looks, ceilings)
        multiple, biased = job.options.width_multiple, self.form in lowrank.WITH_BIAS
        steps = {kind: ladders(module, looks, kind, multiple, times, biased=biased) for kind in ceilings}
        short = _short(job, ceilings)
        plan = _plan(job, steps, ceilings) if LATENCY in ceilings else _saving(steps, short, ceilings)
        twin = recalibrate.twin(job)
        self._split(job, {one.layer: one.rank for one in plan.low_rank})
        parts.record(job, plan, number, twin)

    def _times(
        self, job: Job, looks: Mapping[str, Look], ceilings: Mapping[str, float]
    ) -> dict[str, PairTime]:
        """Of each layer that a pair could save something of; none where nothing is to be timed, or can be."""
        if not (LATENCY in ceilings or (self.measured and "macs" in ceilings)):
            return {}
        module = job.network.module
        sizes = {name: lowrank.matrix(module.get_submodule(name)).shape for name in looks}
        highest = {name: (m * n - 1) // (m + n) for name, (m, n) in sizes.items()}
        costs = macs.trace(module, job.network.example(), Couplings(()))
        threads = job.timing.table.threads if job.timing.table else 1
        try:
            return pair_times.measure(
                costs, {name: k for name, k in highest.items() if k}, job.options.width_multiple, threads
            )
        except MissingHere as err:
            if LATENCY in ceilings:
                raise
            job.warnings.append(f"pairs are chosen by MACs, not by what they take here: {err}")
            return {}

    def by_plan(self, job: Job, ranks: Sequence[LowRank]) -> None:
        """Replace the layers that a plan names by pairs of its ranks, with the target activations of these weights.

        PlanError when a layer is not there, cannot become a pair, or has no such rank; nothing has been changed then.
        """
        number = len(job.trace) + 1
        if parts.taken_up(job, number) is None:
            with parts.looking(job):
                self._cut_by_plan(job, number, ranks)

    def _cut_by_plan(self, job: Job, number: int, ranks: Sequence[LowRank]) -> None:
        module = job.network.module
        check(module, job.network.classifier, ranks)
        looks = self._looks(job, [one.layer for one in ranks])
        if silent := [one.layer for one in ranks if one.layer not in looks]:
            raise PlanError(f"{silent[0]}: no target image reaches it, so its activations say no rank")
        twin = recalibrate.twin(job)
        self._split(job, {one.layer: one.rank for one in ranks})
        lost = {one.layer: (one.rank, float(looks[one.layer].lost[one.rank])) for one in ranks}
        parts.record(job, _made(lost), number, twin)

    def _moments(self, job: Job, names: Sequence[str]) -> Iterator[tuple[str, lowrank.Moments]]:
        """What enters each layer on all target images; so many at a time as lowrank.MOST_BYTES says."""
        module = job.network.module
        for group in lowrank.groups({n: lowrank.matrix(module.get_submodule(n)).shape[1] for n in names}):
            with lowrank.watching(module, group, self.positions) as moments:
                inference.logits_of(module, job.target, job.network.preprocess)
            left = dict(moments)
            del moments
            for name in group:
                yield name, left.pop(name)  # none is held when the next group begins

    def _looks(self, job: Job, names: Sequence[str]) -> dict[str, Look]:
        """Of each layer that target images reach."""
        module = job.network.module
        return {
            name: Look(lowrank.spectrum(lowrank.matrix(module.get_submodule(name)), seen), seen.positions)
            for name, seen in self._moments(job, names)
            if seen.count
        }

    def _split(self, job: Job, ranks: Mapping[str, int]) -> None:
        """All pairs are made from the network as it is, and only then put in."""
        pairs = {}
        for name, seen in self._moments(job, list(ranks)):
            layer = job.network.module.get_submodule(name)
            weight, bias = lowrank.matrix(layer), layer.bias
            pairs[name] = lowrank.factors(weight, bias, seen, ranks[name], self.form, self.ridge)  # type: ignore[arg-type]
        for name, made in pairs.items():
            surgery.split(job.network.module, name, made)


def _kept(name: str, globs: Sequence[str]) -> bool:
    """Whether --keep names a layer, or a part of the network that it is in."""
    return any(fnmatchcase(name, glob) or fnmatchcase(name, glob.rstrip(".") + ".*") for glob in globs)


def check(module: nn.Module, classifier: str, ranks: Sequence[LowRank]) -> None:
    """PlanError unless each of the layers is there, can become a pair, and has such a rank."""
    able, there = candidates(module, classifier), dict(module.named_modules())
    for one in ranks:
        if one.layer not in there:
            raise PlanError(
                f"{one.layer}: the plan makes it low-rank, the network has no such layer; {nearest(one.layer, able)}"
            )
        if one.layer not in able:
            raise PlanError(
                f"{one.layer}: the plan makes it low-rank, but it must stay: it is {type(there[one.layer]).__name__}, "
                "the classifier, grouped, or shares its weight; expected Linear or an ungrouped Conv2d"
            )
        m, n = lowrank.matrix(there[one.layer]).shape
        if one.rank > min(m, n):
            raise PlanError(f"{one.layer}: rank {one.rank} in the plan, {m} x {n} in the network")


def candidates(module: nn.Module, classifier: str) -> list[str]:
    """Layers that can become pairs: not the classifier, none whose weight is shared."""
    owners: dict[int, int] = {}
    for _, tensor in module.named_parameters(remove_duplicate=False):
        owners[id(tensor)] = owners.get(id(tensor), 0) + 1
    return [
        name
        for name, part in module.named_modules()
        if name != classifier and lowrank.fits(part) and owners[id(part.weight)] == 1
    ]


def _short(job: Job, ceilings: Mapping[str, float]) -> dict[str, float]:
    """How much of what is counted the network has beyond its ceilings."""
    counted = zip(("macs", "params"), macs.measure(job.network.module, job.network.example()), strict=True)
    return {kind: have - ceilings[kind] for kind, have in counted if kind in ceilings}


def _saving(
    steps: Mapping[str, Ladders], needed: Mapping[str, float], ceilings: Mapping[str, float]
) -> PruningPlan:
    """The ranks that save what is needed of each kind."""
    chosen: dict[str, Choice] = {}
    for kind, much in needed.items():
        ceiling = 0.0 if kind == LATENCY else ceilings[kind]
        for name, one in allocate(steps[kind], much, kind, ceiling).items():
            if name not in chosen or one.rank < chosen[name].rank:
                chosen[name] = one
    return _made({name: (one.rank, one.lost) for name, one in chosen.items()})


def _plan(job: Job, steps: Mapping[str, Ladders], ceilings: Mapping[str, float]) -> PruningPlan:
    """The ranks for a deadline, corrected by what they are measured to take; none where the network meets it."""
    module, clock, limit = job.network.module, require_clock(job), ceilings[LATENCY]
    whole, short = clock(module), _short(job, ceilings)
    if whole <= deadline.BAND[1] * limit:
        return _saving(steps, short, ceilings)
    return deadline.meet(
        lambda milliseconds: _saving(steps, {**short, LATENCY: whole - milliseconds}, ceilings),
        lambda plan: clock(_stand_in(module, plan.low_rank)),
        limit,
    )


def require_clock(job: Job) -> Callable[[nn.Module], float]:
    """The job's clock; UsageError when its layer table comes from another device, which has no times of pairs."""
    if job.timing.clock is None:
        raise UsageError(
            "dalr times its pairs on this machine, and the layer table comes from another one: leave --table out, "
            "or give --macs or --params"
        )
    return job.timing.clock


def _made(chosen: Mapping[str, tuple[int, float]]) -> PruningPlan:
    ranks = tuple(LowRank(name, rank) for name, (rank, _) in chosen.items())
    lost = {name: round(share, 6) for name, (_, share) in chosen.items()}
    return PruningPlan((), ranks, {"method": "dalr", "output_energy_lost": lost})


def _stand_in(module: nn.Module, ranks: Sequence[LowRank]) -> nn.Module:
    """A copy with pairs of these ranks and any weights: to be timed."""
    other = copy.deepcopy(module)
    for one in ranks:
        layer = other.get_submodule(one.layer)
        m, n = lowrank.matrix(layer).shape
        bias = layer.bias.detach().double() if isinstance(layer.bias, Tensor) else None
        first, second = torch.full((one.rank, n), 0.01), torch.full((m, one.rank), 0.01)
        surgery.split(other, one.layer, lowrank.Factors(first, second, bias))
    return other
