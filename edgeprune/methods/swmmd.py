"""Partial adaptation and pruning at once: soft-weighted MMD, and channels that leave by what training says of them.

After Ma et al., Small Is Beautiful: Compressing Deep Neural Networks for Partial Domain Adaptation, TNNLS 2022, whose
text was not to be had: a reconstruction. The paper's: one training for both; soft-weighted MMD as the regulariser;
redundant channels by gradient statistics of batch-norm scales, after a Taylor series. Ours: all that puts it in
numbers (`edgeprune.objectives.swmmd` has the loss L), a budget, and widths that a device likes. With the scale g and
shift b of a channel's batch-norm, over the steps since the last removal,

    I = sum_steps (dL/dg g + dL/db b)^2.

It is read off the gradients that training has anyway. Source classes that the target does not show have little weight
in L, so channels that serve these alone have little gradient, and leave. `--rank threshold` removes the lowest scores
whatever they cost, as the paper does.

The network comes adapted, so lambda is at its peak from the start, and classes weigh what the network gives them. That
the student also learns from the dense network, and from that alone after the last removal, is ours: without
(`--set distill=false`, `tune=both`) a large cut costs more than the paper says in as few steps as these, as source and
target together are learned with batch-norm statistics that stand still, and so by small steps. docs/claims.md has all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune import inference
from edgeprune.methods import learning, parts, work
from edgeprune.methods.job import Job
from edgeprune.objectives.distill import Distill
from edgeprune.objectives.ranges import NOT_NEGATIVE, POSITIVE, SHARE, SOME_SHARE, expect
from edgeprune.objectives.swmmd import SWMMD
from edgeprune.objectives.together import Together
from edgeprune.options import PruneOptions
from edgeprune.prune.coupling import Coupling, Couplings, Member
from edgeprune.prune.masks import Layout
from edgeprune.prune.scores import group, relative
from edgeprune.prune.search import LATENCY
from edgeprune.waist import Batch, Objective, Step


@dataclass(frozen=True)
class SWMMDPruning:
    """See the top of this file; UsageError without labelled source images.

    remove: share of what is budgeted that goes at each removal, when --steps is not given; `--between` passes lie
    between two. warm: passes before the first. weight: lambda, of the discrepancy. entropy: mu, weight of the mean
    entropy. momentum: of the moving average that weighs the classes; 1 weighs all alike, which is plain MMD. through:
    the discrepancy's gradient reaches these weights, too. power: 2 sums squares of the changes, 1 their sizes.
    normalise: scores by their mean in each layer. score: "given" ranks by --score. distill: also learn from the dense
    network, which is ours. tune: after the last removal, "distill" learns from that alone, "both" goes on as before.
    """

    partial: ClassVar[bool] = True
    remove: float = 0.1
    warm: float = 1.0
    weight: float = 1.0
    entropy: float = 0.1
    momentum: float = 0.9
    through: bool = False
    power: float = 2.0
    normalise: Literal["none", "layer"] = "none"
    score: Literal["gradients", "given"] = "gradients"
    distill: bool = True
    tune: Literal["distill", "both"] = "distill"

    def __post_init__(self) -> None:
        expect(self, remove=SOME_SHARE, momentum=SHARE, power=POSITIVE)
        expect(self, warm=NOT_NEGATIVE, weight=NOT_NEGATIVE, entropy=NOT_NEGATIVE)

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        own = {} if self.score == "given" else {"score": "its own ranks, unless --set score=given"}
        return {"objective": "its own is swmmd", **own}

    def idle(self, options: PruneOptions) -> dict[str, str]:
        """Knobs that do less, or nothing, with these options -> why."""
        ranks = dict.fromkeys(("power", "normalise"), "has no effect: --score ranks")
        found = ranks if self.score == "given" else {}
        if self.through and (self.momentum == 1 or not self.weight):
            found["through"] = "has no effect: momentum=1 has no weights, weight=0 no discrepancy"
        if not self.distill:
            found["tune"] = "has no effect: distill=false has no teacher"
        return found

    @property
    def learns_ranks(self) -> str | None:
        """What a dry run cannot know of the ranks."""
        return None if self.score == "given" else "the run ranks by the gradients of its training"

    def cuts_in(self, job: Job) -> int:
        """How many cuts a run makes of the job."""
        return job.options.iterations or removals(job, self.remove)

    def __call__(self, job: Job) -> None:
        """Adapt, cut and fine-tune `job.network` in place, within `job.budget`."""
        work.require_source(job, "swmmd")
        told = [entry["partial"] for entry in job.network.history if "partial" in entry]
        if told and not told[-1]:
            job.warnings.append(
                "swmmd is made for targets that lack classes; this network was adapted to all of them"
            )
        job = work.several(job, self.cuts_in(job), "linear")
        knobs = SWMMD.Knobs(self.weight, self.entropy, self.momentum, self.through)
        own = SWMMD(learning.task(job.network), knobs)
        if self.momentum < 1:  # else all weigh alike
            answers = inference.logits_of(job.dense, job.target, job.network.preprocess)
            own.average = answers.softmax(1).mean(0)
        teacher = Distill(learning.task(job.network))
        loss = Together([(1.0, own), (1.0, teacher)]) if self.distill else own
        last = teacher if self.distill and self.tune == "distill" else None
        seen = Watched(job, loss, self.power)
        work.learn(job, seen, self.warm, "warm")
        for number, ceiling, passes in work.rounds(job):
            ends, watched = number == job.cuts, seen

            def ranked(job: Job, found: Couplings, watched: Watched = watched) -> Mapping[str, Tensor]:
                return self._rank(job, found, watched)

            self._warn(job, watched, number)
            parts.cut(job, ceiling, number, ranked)
            if not (ends and last):  # what goes next is read from the training
                seen = Watched(job, loss, self.power)
            work.learn(job, last if ends and last else seen, passes, f"recover-{number}")

    def _rank(self, job: Job, found: Couplings, watched: Watched) -> Mapping[str, Tensor]:
        """(C,) of each coupling; by --score where it is asked for, or nothing was trained yet to be read."""
        if self.score == "given":
            return parts.score(job, found)
        if not watched.steps:
            return parts.score(job, found)
        scores = watched.scores()
        chosen = {one.root: scores[one.root] for one in found}
        return relative(chosen) if self.normalise == "layer" else chosen

    def _warn(self, job: Job, watched: Watched, number: int) -> None:
        """Warn of a cut that is not ranked as the paper does."""
        if self.score == "given" or job.options.dry_run:
            return
        said = f"swmmd: nothing was trained before cut {number}, so --score {job.options.score} ranks"
        if watched.steps:
            said = (
                f"swmmd: {len(watched.bare)} couplings have no batch-norm and are ranked by their weights' "
                f"gradients: {', '.join(watched.bare[:3])}"
            )
        if said not in job.warnings and (watched.bare or not watched.steps):
            job.warnings.append(said)


def removals(job: Job, remove: float) -> int:
    """How many removals of that share of the dense network's cost reach the budget."""
    costs = job.dense_costs
    shares = []
    for kind, ceiling in parts.limits(job)[-1].items():
        dense = job.dense_ms if kind == LATENCY else float(getattr(costs, kind)(costs.full))
        shares.append(1 - ceiling / dense)
    return max(1, math.ceil(round(max(shares) / remove, 9)))


class Watched(Objective):
    """A loss, and the sum over steps of what its gradient says of each channel (`total`, all couplings side by side).

    What ramps in the loss is at its end.
    """

    total: Tensor
    steps: Tensor

    def __init__(self, job: Job, loss: Objective, power: float) -> None:
        super().__init__(loss.task)
        self.loss, self.power, self.needs = loss, power, loss.needs
        self.partial = loss.partial
        module, couplings = job.network.module, parts.couplings(job)
        self.layout = Layout(couplings)
        self._read = tuple(_sources(module, one) for one in couplings)  # no part of this module
        self.bare = [one.root for one in couplings if not _norms(module, one)]
        self.register_buffer("total", torch.zeros(self.layout.size, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Those of the loss."""
        return self.loss.terms(source, target, Step(max(1, step.total - 1), step.total))

    def refresh(self, features: Tensor, logits: Tensor) -> None:
        """Hand features (M, D) and logits (M, K) on."""
        self.loss.refresh(features, logits)

    @torch.no_grad()
    def before_update(self, step: Step) -> None:
        """Add this step's first-order change of the loss, were each channel to go."""
        added = torch.zeros_like(self.total)
        for one, read in zip(self.layout.couplings, self._read, strict=True):
            change = sum(part.change() for part in read)
            if isinstance(change, Tensor):
                added[self.layout.places[one.root]] = change.to(self.total).abs() ** self.power
        if bool(added.isfinite().all()):  # else 16 bits overflowed: no one takes this step
            self.total += added
            self.steps += 1

    def scores(self) -> dict[str, Tensor]:
        """root -> I (C,), larger = keep."""
        return {root: value.cpu() for root, value in self.layout.split(self.total).items()}


@dataclass(frozen=True)
class _Gradient:
    """Parameters whose rows make channels: their product with their gradient is the change when the channel goes.

    share: one over the number of norms that a channel passes one after the other, each of which says the same.
    """

    tensors: tuple[tuple[nn.Parameter, int], ...]
    index: Tensor
    owner: Tensor
    width: int
    share: float

    def change(self) -> Tensor:
        """(C,), float64."""
        rows = torch.zeros(())
        for tensor, dim in self.tensors:
            if tensor.grad is not None:
                product = (tensor.grad * tensor).movedim(dim, 0)
                rows = rows.to(product.device) + product.reshape(len(product), -1).sum(1).double()
        out = torch.zeros(self.width, dtype=torch.float64, device=rows.device)
        if rows.ndim:
            out.index_add_(0, self.owner.to(rows.device), self.share * rows[self.index.to(rows.device)])
        return out


def _norms(module: nn.Module, coupling: Coupling) -> list[Member]:
    found = group.gains(module, coupling)
    return [m for m in found if isinstance(module.get_submodule(m.tensor.rpartition(".")[0]), _BatchNorm)]


def _sources(module: nn.Module, coupling: Coupling) -> list[_Gradient]:
    """What says how the loss changes with a coupling's channels: batch-norms, else the weights that make them.

    Norms inside a block come one after the other, and their mean is taken; on a residual stream each adds its part.
    """
    norms = _norms(module, coupling)
    makers = norms or [m for m in group.weights(module, coupling) if m.axis == "out"]
    share = 1 / len(norms) if norms and coupling.inner else 1.0
    found = []
    for member in makers:
        layer, _, _ = member.tensor.rpartition(".")
        tensors = [(module.get_parameter(member.tensor), member.dim)]
        bias = getattr(module.get_submodule(layer), "bias", None)
        if norms and isinstance(bias, nn.Parameter):
            tensors.append((bias, 0))
        owner = torch.tensor([c for c, s in enumerate(member.slices) for _ in s])
        index = torch.tensor([i for s in member.slices for i in s])
        found.append(_Gradient(tuple(tensors), index, owner, coupling.width, share))
    return found
