"""One method, and then low rank on what it leaves, within one budget and one number of passes.

Ours: the two save different things, channels that the target does not need and directions that its activations do not
take. Between them the budget is shared in logarithms: each factor of the whole cut is the product of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgeprune.methods import parts
from edgeprune.methods.dalr import DALR
from edgeprune.methods.job import Job
from edgeprune.options import PruneOptions
from edgeprune.prune.budget import Budget


@dataclass(frozen=True)
class Then:
    """`first`, then `second`. share: how far along the way to the budget, and of the passes, the first goes, 0..1."""

    first: Callable[[Job], None]
    second: DALR
    share: float

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        return getattr(self.first, "ignores", {})

    @property
    def usual_objective(self) -> str | None:
        """What the first adapts by when no --objective is given."""
        return getattr(self.first, "usual_objective", None)

    @property
    def learns_ranks(self) -> str | None:
        """What a dry run cannot know of the ranks."""
        return getattr(self.first, "learns_ranks", None)

    @property
    def partial(self) -> bool:
        """Whether it is for a target that lacks classes."""
        return bool(getattr(self.first, "partial", False))

    def idle(self, options: PruneOptions) -> dict[str, str]:
        """Knobs that do less, or nothing, with these options -> why."""
        found: dict[str, str] = getattr(self.first, "idle", lambda options: {})(options)
        return found | {f"dalr.{name}": why for name, why in self.second.idle(options).items()}

    def cuts_in(self, job: Job) -> int:
        """How many cuts a run makes of the job, the low rank as one."""
        before = parts.as_if(self.on_the_way(job), recover=job.options.recover * self.share)
        return 1 + parts.cuts_in(before, self.first)

    def passes_beside(self, job: Job) -> float:
        """Passes after the first cut that are not of --recover."""
        found: float = getattr(self.first, "passes_beside", lambda job: 0.0)(job)
        return found

    def __call__(self, job: Job) -> None:
        """Cut, make low-rank and recover `job.network` in place, within `job.budget`."""
        passes = job.options.recover
        self.first(parts.as_if(self.on_the_way(job), recover=passes * self.share))
        self.second(parts.as_if(job, recover=passes * (1 - self.share)))

    def preview(self, job: Job) -> None:
        """Both plans, one after the other, with nothing learned between."""
        parts.preview(self.on_the_way(job), self.first)
        self.second.preview(job)

    def on_the_way(self, job: Job) -> Job:
        """The job with a budget of (what is kept)^share, of MACs, parameters and latency as they are given."""
        ceilings = {}
        for kind, kept in job.budget.given.items():
            dense = 1.0 if kept <= 1 else float(getattr(job.dense_costs, kind)(job.dense_costs.full))
            ceilings[kind] = dense * min(1.0, kept / dense) ** self.share
        if (most := job.budget.deadline(job.dense_ms) if job.budget.timed else None) is not None:
            ceilings["milliseconds"] = job.dense_ms * min(1.0, most / job.dense_ms) ** self.share
        return replace(job, budget=Budget(**ceilings), rough=True)
