"""The recommended way: few cuts by the measured score, each followed by imitation of the dense network.

Ours. A cut network still has some of the dense one's channels, so besides its answers it can be shown what those
channels should hold (edgeprune.objectives.imitate). It needs no source image. Expects an adapted network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from edgeprune.methods import parts, work
from edgeprune.methods.job import Job
from edgeprune.objectives.ranges import AT_LEAST_ONE, NOT_NEGATIVE, expect
from edgeprune.plan import PruningPlan
from edgeprune.prune.coupling import Couplings


@dataclass(frozen=True)
class AutoPruning:
    """Cut and recover within `--recover` passes in all, `--between` of them after each cut but the last.

    cuts: when --steps is not given, and at most one for each pass: what a cut broke must be learned again before the
    next is worth more than taking all at once. layers: weight of the error inside the network, beside that of its
    answers. ahead: the first cut's scores say how wide each layer is in the end, and later ones which channels that
    are; else each cut says anew, by scores of a network that has only begun to recover.
    """

    cuts: int = 3
    layers: float = 1.0
    ahead: bool = False

    def __post_init__(self) -> None:
        expect(self, cuts=AT_LEAST_ONE, layers=NOT_NEGATIVE)

    def cuts_in(self, job: Job) -> int:
        """How many cuts a run makes of the job."""
        return job.options.iterations or max(1, min(self.cuts, int(job.options.recover)))

    def __call__(self, job: Job) -> None:
        """Cut and recover `job.network` in place, within `job.budget`."""
        job = work.several(job, self.cuts_in(job), "cubic")
        choose = Ahead() if self.ahead and not job.budget.timed else None
        for number, ceiling, passes in work.rounds(job):
            parts.cut(job, ceiling, number, choose=choose)
            objective = parts.chosen_objective(job, self.layers)
            work.learn(job, objective, passes, f"recover-{number}")


@dataclass
class Ahead:
    """Plans for absolute ceilings on the way to one for the whole budget, that was made first: `least`, root -> width,
    is as narrow as layers get in that one. A latency has no such plan, since each one would be measured.
    """

    least: dict[str, int] = field(default_factory=dict)

    def __call__(
        self, job: Job, found: Couplings, scores: Mapping[str, Tensor], ceilings: Mapping[str, float]
    ) -> PruningPlan:
        """The plan for `ceilings`; a process that resumes takes up the widths that the first one decided."""

        def widths() -> dict[str, int]:
            whole = parts.plan_within(job, found, scores, parts.limits(job)[-1])
            return {one.root: one.width for one in found} | {cut.root: len(cut.keep) for cut in whole.cuts}

        self.least = self.least or parts.decided(job, "widths", widths)
        return parts.plan_within(job, found, scores, ceilings, self.least)
