"""Score on unlabelled target images, cut, re-estimate batch-norm, and recover by distillation from the dense network.

Not a paper's method but the plain way that the papers' methods are measured against; it needs no source image.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.methods import job as parts
from edgeprune.methods.job import Job


@dataclass(frozen=True)
class DistillPruning:
    """One cut or several; `between` passes of recovery after each but the last, `recover` passes after the last."""

    def __call__(self, job: Job) -> None:
        """Cut and recover `job.network` in place, within `job.budget`."""
        ceilings = parts.limits(job)
        for number, ceiling in enumerate(ceilings):
            parts.cut(job, ceiling, number)
            last = number == len(ceilings) - 1
            parts.recover(job, job.options.recover if last else job.options.between, f"recover-{number}")
