"""The recommended way: few cuts by the measured score, each followed by imitation of the dense network.

Ours. A cut network still has some of the dense one's channels, so besides its answers it can be shown what those
channels should hold (edgeprune.objectives.imitate). It needs no source image. Expects an adapted network.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.methods import parts, work
from edgeprune.methods.job import Job
from edgeprune.objectives.ranges import AT_LEAST_ONE, NOT_NEGATIVE, expect


@dataclass(frozen=True)
class AutoPruning:
    """Cut and recover within `--recover` passes in all, `--between` of them after each cut but the last.

    cuts: when --steps is not given, and at most one for each pass: what a cut broke must be learned again before the
    next is worth more than taking all at once. layers: weight of the error inside the network, beside that of its
    answers.
    """

    cuts: int = 3
    layers: float = 1.0

    def __post_init__(self) -> None:
        expect(self, cuts=AT_LEAST_ONE, layers=NOT_NEGATIVE)

    def cuts_in(self, job: Job) -> int:
        """How many cuts a run makes of the job."""
        return job.options.iterations or max(1, min(self.cuts, int(job.options.recover)))

    def __call__(self, job: Job) -> None:
        """Cut and recover `job.network` in place, within `job.budget`."""
        job = work.several(job, self.cuts_in(job), "cubic")
        for number, ceiling, passes in work.rounds(job):
            parts.cut(job, ceiling, number)
            objective = parts.chosen_objective(job, self.layers)
            work.learn(job, objective, passes, f"recover-{number}")
