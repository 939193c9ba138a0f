"""Transfer channel pruning: rank channels by what they do for both domains, remove a few, fine-tune, and again.

Yu et al., Accelerating Deep Unsupervised Domain Adaptation with Transfer Channel Pruning, IJCNN 2019, arXiv 1904.02654.
Expects an adapted network (the paper's base: fine-tuned by cross entropy and MMD), or a source network with `base` set.
The paper's: the score, the loss CE(source) + beta MMD, beta = 4 / (1 + exp(-i / n)) - 2 at iteration i of n, short
fine-tunes between and a long one at the end. Ours: a budget in place of a number of channels, couplings in place of
single layers, widths that a device likes, and no look at target labels, which the paper's stopping rule and checkpoints
take. The paper removes the lowest scores whatever they cost, which is `--rank threshold`; the usual `--rank global`
weighs the squares, which keep the paper's order, by what they save.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.methods import learning, parts, work
from edgeprune.methods.job import Job
from edgeprune.objectives.dan import DAN
from edgeprune.objectives.distill import Distill
from edgeprune.objectives.mmd import gaussian_kernels, squared_mmd
from edgeprune.objectives.ranges import AT_LEAST_ONE, NOT_NEGATIVE, expect
from edgeprune.objectives.source import Source, of_rows
from edgeprune.objectives.together import Together
from edgeprune.options import PruneOptions
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.scores.transfer import Pairs, Pass, Transfer, additive
from edgeprune.waist import Objective

CODE_WEIGHT = 2 / (1 + math.exp(-1)) - 1  # of the MMD while ranking: the code calls its ramp at e = 1 of 10


@dataclass(frozen=True)
class TCP:
    """See the top of this file; UsageError without labelled source images.

    variant: the paper's score, the released code's, "max" over the domains in place of its min, "source" (the first
    term alone), or "given": what --score says. cuts: iterations when --steps is not given, evenly spread as the paper's
    are. channels: K, how many an iteration removes on the mean: it says how many iterations there are, each of which
    saves as much of the budget (0: cuts says it). batches: of both domains, for one ranking. base: passes of training
    before the first cut. weight: times beta; 0 and variant=source are the paper's "TCP without DA". distill: also learn
    from the dense network, which the paper does not.
    """

    variant: Literal["paper", "code", "max", "source", "given"] = "paper"
    cuts: int = 8
    channels: int = 0
    batches: int = 8
    base: float = 0.0
    weight: float = 1.0
    distill: bool = False

    def __post_init__(self) -> None:
        expect(self, cuts=AT_LEAST_ONE, batches=AT_LEAST_ONE)
        expect(self, channels=NOT_NEGATIVE, base=NOT_NEGATIVE, weight=NOT_NEGATIVE)

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        score = {} if self.variant == "given" else {"score": "its own ranks, unless --set variant=given"}
        steps = {"iterations": f"channels={self.channels} says how many", "schedule": "its cuts are even"}
        return score | (steps if self.channels else {})

    def idle(self, options: PruneOptions) -> dict[str, str]:
        """Knobs that do less, or nothing, with these options -> why."""
        found = {"cuts": f"has no effect: channels={self.channels} says how many"} if self.channels else {}
        if self.variant == "given":
            found["batches"] = "has no effect: --score ranks"
        if options.objective == "none":
            return found
        here = "weighs the ranks alone" if self.variant == "paper" else "has no effect"
        return found | {"weight": f"{here}: --objective {options.objective} is learned in place of beta MMD"}

    def cuts_in(self, job: Job) -> int:
        """How many cuts a run makes of the job; with K channels each, a dry run has made them all."""
        made = sum(bool(plan.cuts) for plan in job.plans)  # what follows may have added low-rank pairs
        return made if self.channels else job.options.iterations or self.cuts

    def __call__(self, job: Job) -> None:
        """Cut and fine-tune `job.network` in place, within `job.budget`."""
        work.require_source(job, "tcp")
        if self.base:
            work.learn(job, self.objective(job, beta(1, 1)), self.base, "base")
        job = work.several(job, self.cuts, "linear")
        if self.channels:
            cuts = parts.decided(job, "iterations", lambda: self._iterations(job))
            job = parts.as_if(job, iterations=cuts, schedule="linear")
        last = job.cuts
        for number, ceiling, passes in work.rounds(job):
            now = beta(number, last)
            parts.cut(job, ceiling, number, partial(self.score, weight=now))
            work.learn(job, self.objective(job, now), passes, f"recover-{number}")

    def _iterations(self, job: Job) -> int:
        """How often K channels are removed, by the number that one cut to the whole budget would remove."""
        found = parts.couplings(job)
        plan = parts.plan_within(job, found, self.score(job, found, beta(1, 1)), parts.limits(job)[-1])
        return max(1, math.ceil(sum(cut.width - len(cut.keep) for cut in plan.cuts) / self.channels))

    def objective(self, job: Job, weight: float) -> Objective:
        """CE on the source + weight MMD, or what --objective names (the journal version has DANN, whose discriminator
        goes on from cut to cut; here each stage of training begins one of its own); with a teacher if asked.
        """
        task = learning.task(job.network)
        kept: Objective
        if job.options.objective != "none":
            kept = work.adapting(job)
        elif self.weight:
            kept = DAN(task, DAN.Knobs(weight=self.weight * weight, partial=job.partial))
        else:
            kept = Source(task, Source.Knobs(smoothing=0.0))
        return Together([(1.0, Distill(task)), (1.0, kept)]) if self.distill else kept

    def score(self, job: Job, found: Couplings, weight: float) -> Mapping[str, Tensor]:
        """(C,) of each coupling, larger = keep, with `weight` on the discrepancy."""
        if self.variant == "given":
            return parts.score(job, found)
        assert job.source is not None
        pairs = Pairs(
            job.source,
            job.target,
            job.network.preprocess,
            self.batches,
            job.options.batch,
            job.options.seed,
        )
        adapts = (
            bool(self.weight) or job.options.objective != "none"
        )  # else nothing is known of the target's classes
        shares = job.shares(compares=True) if adapts else None
        losses = Losses(self.variant, self.weight * weight, shares)
        combine: Literal["sum", "min", "max"] = "sum"
        if self.variant in ("code", "max"):
            combine = "min" if self.variant == "code" else "max"
        frozen = job.moves_statistics and (adapts or not self.distill)
        score = Transfer(pairs, losses, job.network.classifier, combine, frozen=frozen)
        return additive(score(job.network.module, found))


@dataclass(frozen=True)
class Losses:
    """What the activations of each domain answer for.

    paper: classification for the source, weighted MMD for the target. source: classification alone. code, max: the
    whole loss for both, with the MMD at the constant weight that the code has while ranking. classes: (K,), how much
    source images of each count; None: alike.
    """

    variant: str
    weight: float
    classes: Tensor | None = None

    def __call__(self, source: Pass, target: Pass) -> tuple[Tensor, Tensor]:
        """The two scalars; the other domain is a constant in each."""
        assert source.labels is not None
        rows = weights(source, self.classes)
        classification = (rows * F.cross_entropy(source.logits, source.labels, reduction="none")).mean()
        if self.variant in ("paper", "source"):
            weight = self.weight if self.variant == "paper" else 0.0
            return classification, weight * discrepancy(source.features.detach(), target.features, rows)
        of_source = discrepancy(source.features, target.features.detach(), rows)
        of_target = discrepancy(source.features.detach(), target.features, rows)
        return classification + CODE_WEIGHT * of_source, CODE_WEIGHT * of_target


def beta(iteration: int, iterations: int) -> float:
    """Weight of the discrepancy at iteration 1..n of n: 4 / (1 + exp(-i / n)) - 2, from near 0 to 0.924."""
    return 4 / (1 + math.exp(-iteration / iterations)) - 2


def weights(source: Pass, classes: Tensor | None) -> Tensor:
    """(N,), mean 1, of labelled images by those of their classes (K,); 1 where these are None."""
    found = of_rows(classes, source.labels)
    return torch.ones_like(source.logits[:, 0]) if found is None else found.to(source.logits)


def discrepancy(source: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    """MK-MMD^2 of features (N, D), that count by `rows` (N,), and (M, D), a scalar: the same as in DAN."""
    return squared_mmd(gaussian_kernels(torch.cat([source, target])), rows, unbiased=True)
