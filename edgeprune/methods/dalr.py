"""Domain-adaptive low rank: layers become pairs in closed form from target activations, without labels or training.

The paper's (Masana et al., ICCV 2017): the closed form of fully connected layers. Ours: convolutions, and ranks by
the share of output energy that is lost for each MAC or parameter saved, instead of labelled validation accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from edgeprune import inference
from edgeprune.errors import BudgetNotMet, PlanError, UsageError, nearest
from edgeprune.methods import parts, work
from edgeprune.methods.job import Job
from edgeprune.plan import LowRank, PruningPlan
from edgeprune.prune import lowrank, macs, surgery


@dataclass(frozen=True)
class Choice:
    """A layer at one rank: what it saves (MACs or parameters) and the share of output energy that it loses."""

    layer: str
    rank: int
    saved: float
    lost: float


@dataclass(frozen=True)
class Look:
    """What target images say of a layer: share of output energy lost at each rank (m + 1,), products an image."""

    lost: Tensor
    positions: float


@dataclass(frozen=True)
class DALR:
    """form: svd, svd-bias, dalr or centred. ridge: times the mean energy of an input. positions: patches an image."""

    form: str = "centred"
    ridge: float = 1e-3
    positions: int = 16

    def __post_init__(self) -> None:
        if self.form not in lowrank.FORMS:
            raise UsageError(f"form={self.form}: no such closed form; {nearest(self.form, lowrank.FORMS)}")

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        return dict.fromkeys(("score", "rank", "iterations", "schedule"), "it cuts no channels, and once")

    def __call__(self, job: Job) -> None:
        """Replace layers of `job.network` by pairs until the budget holds, then recover."""
        self.preview(job)
        work.learn(job, parts.chosen_objective(job), job.options.recover, "recover-dalr")

    def preview(self, job: Job) -> None:
        """Replace layers by pairs until the budget holds and learn nothing: what --dry-run shows."""
        number = len(job.trace)
        if parts.taken_up(job, number) is not None:
            return
        ceilings = parts.limits(job)[-1]
        if other := sorted(set(ceilings) - {"macs", "params"}):
            raise UsageError(f"--method dalr takes --macs or --params; received a budget of {other[0]}")
        module = job.network.module
        able = [
            name for name in candidates(module, job.network.classifier) if not _kept(name, job.options.keep)
        ]
        looks = self._looks(job, able)
        chosen: dict[str, Choice] = {}
        before = dict(zip(("macs", "params"), macs.measure(module, job.network.example()), strict=True))
        for kind, ceiling in ceilings.items():
            more = allocate(ladders(module, looks, kind, job.options.width_multiple), before[kind] - ceiling)
            for name, one in more.items():
                if name not in chosen or one.rank < chosen[name].rank:
                    chosen[name] = one
        self._split(job, {name: one.rank for name, one in chosen.items()})
        _record(job, {name: (one.rank, one.lost) for name, one in chosen.items()}, number)

    def by_plan(self, job: Job, ranks: Sequence[LowRank]) -> None:
        """Replace the layers that a plan names by pairs of its ranks, with the target activations of these weights.

        PlanError when a layer is not there, cannot become a pair, or has no such rank; nothing has been changed then.
        """
        number = len(job.trace)
        if parts.taken_up(job, number) is not None:
            return
        module = job.network.module
        check(module, job.network.classifier, ranks)
        looks = self._looks(job, [one.layer for one in ranks])
        if silent := [one.layer for one in ranks if one.layer not in looks]:
            raise PlanError(f"{silent[0]}: no target image reaches it, so its activations say no rank")
        self._split(job, {one.layer: one.rank for one in ranks})
        lost = {one.layer: (one.rank, float(looks[one.layer].lost[one.rank])) for one in ranks}
        _record(job, lost, number)

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


def ladders(module: nn.Module, looks: Mapping[str, Look], kind: str, multiple: int) -> list[list[Choice]]:
    """For each layer that ran, its ranks that save something, in multiples, the largest first."""
    found = []
    for name, seen in looks.items():
        m, n = lowrank.matrix(module.get_submodule(name)).shape
        each = seen.positions if kind == "macs" else 1
        ranks = range(multiple, min(m, n) + 1, multiple)
        steps = [Choice(name, k, each * (m * n - k * (m + n)), float(seen.lost[k])) for k in ranks]
        found.append([one for one in reversed(steps) if one.saved > 0])
    return [steps for steps in found if steps]


def allocate(ladders: list[list[Choice]], needed: float) -> dict[str, Choice]:
    """Ranks that save `needed`, each step the one that loses least output energy for what it saves; BudgetNotMet."""
    chosen: dict[str, Choice] = {}
    while (short := needed - sum(one.saved for one in chosen.values())) > 0:
        best: tuple[float, Choice] | None = None
        for steps in ladders:
            now = chosen.get(steps[0].layer, Choice(steps[0].layer, 0, 0, 0.0))
            for one in (s for s in steps if s.saved > now.saved):
                price = max(one.lost - now.lost, 0.0) / min(one.saved - now.saved, short)
                if best is None or price < best[0]:
                    best = price, one
        if best is None:
            raise BudgetNotMet(
                f"low rank saves {needed - short:.0f} of the {needed:.0f} that the budget asks for; "
                "give a larger --macs or --params, or cut channels with another method"
            )
        chosen[best[1].layer] = best[1]
    return chosen


def _record(job: Job, chosen: Mapping[str, tuple[int, float]], number: int) -> None:
    ranks = tuple(LowRank(name, rank) for name, (rank, _) in chosen.items())
    lost = {name: round(share, 6) for name, (_, share) in chosen.items()}
    parts.record(job, PruningPlan((), ranks, {"method": "dalr", "output_energy_lost": lost}), number)
