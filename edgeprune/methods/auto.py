"""The recommended way: one cut by the measured score, then imitation of the dense network, layer by layer too.

Ours. A cut network still has some of the dense one's channels, so besides its answers it can be shown what those
channels should hold (edgeprune.objectives.imitate). It needs no source image. Expects an adapted network.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.methods import parts, work
from edgeprune.methods.job import Job
from edgeprune.objectives.ranges import NOT_NEGATIVE, expect


@dataclass(frozen=True)
class AutoPruning:
    """One cut or several (--steps); `recover` passes in all, `between` of them after each cut but the last.

    One, because a later cut's scores are of a network that has only begun to recover; the ablations have three.
    layers: weight of the error inside the network, beside that of its answers; 0 is `distill`.
    """

    layers: float = 1.0

    def __post_init__(self) -> None:
        expect(self, layers=NOT_NEGATIVE)

    def __call__(self, job: Job) -> None:
        """Cut and recover `job.network` in place, within `job.budget`."""
        for number, ceiling, passes in work.rounds(job):
            parts.cut(job, ceiling, number)
            work.learn(job, parts.chosen_objective(job, self.layers), passes, f"recover-{number}")
