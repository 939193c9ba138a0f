"""A plan that is there already, as a method: its cuts, then its ranks with values from these weights, then recovery."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgeprune.methods import parts, work
from edgeprune.methods.dalr import DALR
from edgeprune.methods.job import Job
from edgeprune.plan import PruningPlan


@dataclass(frozen=True)
class Given:
    """Applies `plan`. A rank says nothing of values: low_rank makes them from what target images do in this network."""

    plan: PruningPlan
    low_rank: DALR

    def __call__(self, job: Job) -> None:
        """Cut, make low-rank and recover `job.network` in place."""
        self.preview(job)
        work.learn(job, parts.chosen_objective(job), job.options.recover, "recover-0")

    def preview(self, job: Job) -> None:
        """Apply the plan and learn nothing."""
        cuts = replace(self.plan, low_rank=())
        if cuts.cuts or not self.plan.low_rank:
            parts.cut(job, {}, 0, lambda *_: {}, lambda *_: cuts)
        if self.plan.low_rank:
            self.low_rank.by_plan(job, self.plan.low_rank)
