"""Score on unlabelled target images, cut, re-estimate batch-norm, and recover by distillation from the dense network.

Not a paper's method but the plain way that the papers' methods are measured against; it needs no source image.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.methods import parts, work
from edgeprune.methods.job import Job


@dataclass(frozen=True)
class DistillPruning:
    """One cut or several; `recover` passes in all, `between` of them after each cut but the last."""

    def __call__(self, job: Job) -> None:
        """Cut and recover `job.network` in place, within `job.budget`."""
        for number, ceiling, passes in work.rounds(job):
            parts.cut(job, ceiling, number)
            work.learn(job, parts.chosen_objective(job), passes, f"recover-{number}")
