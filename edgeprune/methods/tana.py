"""Target-aware network adaptation: layers lose the channels that target images hardly light up, the emptiest first.

After Zhong, Li, Okada, Maki, Target Aware Network Adaptation for Efficient Representation Learning, ECCV workshops
2018, arXiv 1810.01104, whose method section is not public. Known of it: filters leave by activation statistics; the
cumulative sum of these in a layer and a priority across layers say how many of each layer; pruning and fine-tuning on a
small labelled target set alternate. Ours: all that puts it in numbers, the label-free use, couplings in place of
layers, and a budget in place of a stopping rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.methods import learning, parts, work
from edgeprune.methods.job import Job
from edgeprune.objectives.distill import Distill
from edgeprune.objectives.ranges import AT_LEAST_ONE, NOT_NEGATIVE, SOME_SHARE, expect
from edgeprune.objectives.source import Source
from edgeprune.objectives.together import Together
from edgeprune.options import PruneOptions
from edgeprune.prune import macs
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.score import Images
from edgeprune.prune.scores.activation import Activation
from edgeprune.waist import Objective


@dataclass(frozen=True)
class TANA:
    """See the top of this file; expects an adapted network.

    statistic: of a channel over target images and positions: "mean" of |a|, the "rms", each times the norm of the
    weights that read it ("read-mean", "read-rms"), or "given": what --score says. priority: among layers: "share" of
    channels that carry little, times the "cost" that goes with them, "none" (one threshold for all layers), or "budget"
    (least share of activation lost for each share of the budget saved). level: step of the threshold on the cumulative
    sum, a share of a layer's activation. most: of a layer that one cut takes, while others have channels to give. cuts:
    when --steps is not given. distill: weight of the distillation beside the cross entropy on labelled target images.
    layers: weight of the error inside the network in the label-free recovery.
    """

    statistic: Literal["mean", "rms", "read-mean", "read-rms", "given"] = "read-rms"
    priority: Literal["share", "cost", "none", "budget"] = "cost"
    level: float = 0.02
    most: float = 0.2
    cuts: int = 4
    distill: float = 0.0
    layers: float = 0.0

    def __post_init__(self) -> None:
        expect(self, level=SOME_SHARE, most=SOME_SHARE, cuts=AT_LEAST_ONE)
        expect(self, distill=NOT_NEGATIVE, layers=NOT_NEGATIVE)

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        own = "its own statistic and priority rank, unless --set statistic=given"
        return {} if self.statistic == "given" else {"score": own, "rank": own}

    def idle(self, options: PruneOptions) -> dict[str, str]:
        """Knobs that do less, or nothing, with these options -> why."""
        found = {}
        if self.statistic == "given":
            found = dict.fromkeys(
                ("priority", "level", "most"), "has no effect: --score and --rank say what goes"
            )
        elif self.priority == "budget":
            found = dict.fromkeys(("level", "most"), "has no effect: priority=budget has no threshold")
        if options.labelled_target is None:
            alone = "has no effect: it goes with --labelled-target; without, the dense network teaches"
            return found | {"distill": alone}
        learned = "has no effect: --labelled-target is learned from, not the inside of the dense network"
        return found | {"layers": learned}

    def __call__(self, job: Job) -> None:
        """Cut and fine-tune `job.network` in place, within `job.budget`."""
        job = self._ranked(work.several(job, self.cuts, "linear"))
        if job.labelled is not None and job.options.objective != "none":
            raise UsageError(
                f"--objective {job.options.objective}: with --labelled-target, tana learns from those labels; "
                "leave one of the two out (--set distill=1 adds the dense network's answers)"
            )
        for number, ceiling, passes in work.rounds(job):
            parts.cut(job, ceiling, number, self.score)
            self._learn(job, passes, f"recover-{number}")

    def preview(self, job: Job) -> None:
        """Cut once to the whole budget and learn nothing: what --dry-run shows. One cut may take what all may."""
        most = 1 - (1 - self.most) ** work.several(job, self.cuts, "linear").cuts
        job = self._ranked(job)
        parts.cut(job, parts.limits(job)[-1], 1, replace(self, most=most).score)

    def _ranked(self, job: Job) -> Job:
        """The order of leaving is decided here, so it is a threshold for the planner, unless --score decides."""
        if self.statistic == "given":
            return job
        return parts.as_if(job, rank="global" if self.priority == "budget" else "threshold")

    def _learn(self, job: Job, passes: float, stage: str) -> None:
        """Cross entropy on labelled target images where there are some, else distillation and --objective."""
        if job.labelled is None:
            work.learn(job, parts.chosen_objective(job, self.layers), passes, stage)
            return
        task = learning.task(job.network)
        learned: Objective = Source(task, Source.Knobs(smoothing=0.0))
        if self.distill:
            learned = Together([(1.0, learned), (self.distill, Distill(task))])
        work.learn(replace(job, source=job.labelled), learned, passes, stage)

    def score(self, job: Job, found: Couplings) -> Mapping[str, Tensor]:
        """(C,) of each coupling, larger = keep: how late a channel leaves."""
        if self.statistic == "given":
            return parts.score(job, found)
        shares = {root: part / part.sum() for root, part in self._statistics(job, found).items()}
        if self.priority == "budget":
            return shares
        return leaving(shares, self.level, self.most, self._priority(job, found))

    def _statistics(self, job: Job, found: Couplings) -> dict[str, Tensor]:
        """(C,) above 0 of each coupling, in units of its own."""
        read, _, kind = self.statistic.rpartition("-")
        images = Images(job.target, job.network.preprocess, job.network.module)
        power = 1 if kind == "mean" else 2
        seen = Activation(images, bool(read), False, power)(job.network.module, found)
        tiny = torch.finfo(torch.double).tiny
        return {root: v.double().clamp_min(tiny).pow(1 / power) for root, v in seen.items()}

    def _priority(self, job: Job, found: Couplings) -> Priority | None:
        """R = channels that go / channels, or R times the cost that goes with them; None: all layers alike.

        The cost is the first that is budgeted, MACs for latency.
        """
        width = {one.root: one.width for one in found}
        if self.priority == "none":
            return None
        if self.priority == "share":
            return lambda root, gone: gone / width[root]
        costs = macs.trace(job.network.module, job.network.example(), found)
        gauge = getattr(costs, next(iter(job.budget.given), "macs"))
        place = {root: i for i, root in enumerate(costs.roots)}

        def saved(root: str, gone: int) -> float:
            fewer = costs.full.copy()
            fewer[place[root]] -= gone
            return gone / width[root] * float(gauge(costs.full) - gauge(fewer))

        return saved


Priority = Callable[[str, int], float]
"""(layer, how many of its channels would go) -> larger is sooner."""


def tails(share: Tensor) -> Tensor:
    """(C,) cumulative sums over a layer, from the weakest up: what it loses when a channel and all weaker ones go.

    share (C,), adding up to 1. With K channels left the cumulative sum of the strongest is 1 - tail of the K + 1st, so
    the fewest that hold a share t are those whose tail is above 1 - t.
    """
    order = _weakest(share)
    sums = torch.zeros_like(share, dtype=torch.double)
    sums[order] = share[order].double().cumsum(0)
    return sums


def leaving(
    shares: Mapping[str, Tensor], level: float, most: float, priority: Priority | None
) -> dict[str, Tensor]:
    """When each channel goes, (C,) of each layer, smaller = earlier.

    The threshold on the cumulative sum falls from 1 in steps of `level`. At each step every layer may lose the channels
    outside of it, and layers go in the order of their priority; without one all go at once, by their tails alone. What
    carries nothing goes before all else, and what is beyond the share `most` of a layer after all that is within.
    """
    sums = {root: tails(part) for root, part in shares.items()}
    when = {root: part.clone() for root, part in sums.items()}
    steps = {root: (part / level - 1e-9).ceil() for root, part in sums.items()}
    for step in range(1 + int(max(float(part.max()) for part in steps.values()))) if priority else ():
        assert priority is not None
        rate = {root: priority(root, int((part <= step).sum())) for root, part in steps.items()}
        for place, root in enumerate(sorted(sums, key=lambda root: -rate[root])):
            here = steps[root] == step
            when[root][here] = level * (step - 1 + (place + sums[root][here]) / len(sums))
    last = 1 + level + max(float(part.max()) for part in when.values())
    for root, part in when.items():
        may = max(1, int(most * len(part) + 1e-9), int((steps[root] == 0).sum()))
        part[_weakest(sums[root])[may:]] += last
    return when


def _weakest(values: Tensor) -> Tensor:
    """Channels (C,), the weakest first; of equals the last, as the planner has it."""
    return len(values) - 1 - torch.argsort(values.flip(0), stable=True)
