"""A plan that is there already, as a method: its cuts, then its ranks with values from these weights, then recovery."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace

from edgeprune.methods import parts, work
from edgeprune.methods.dalr import DALR
from edgeprune.methods.job import Job
from edgeprune.options import PruneOptions
from edgeprune.plan import PruningPlan


@dataclass(frozen=True)
class Given:
    """Applies `plan`. A rank says nothing of values: low_rank makes them from what target images do in this network.

    instead: the method of the options, that the plan stands in for.
    """

    plan: PruningPlan
    low_rank: DALR
    instead: object = None

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        words = ("score", "rank", "iterations", "schedule", "between", "floor", "multiple")
        return dict.fromkeys(words, "the plan says what goes") | {
            "method": "after the plan's cut comes distillation"
        }

    def idle(self, options: PruneOptions) -> dict[str, str]:
        """Knobs that do less, or nothing, with these options -> why."""
        if self.instead is self.low_rank:
            return {"measured": "has no effect: the plan says the ranks"}
        known = fields(self.instead) if is_dataclass(self.instead) else ()
        return {one.name: "has no effect: the plan says what goes" for one in known}

    def __call__(self, job: Job) -> None:
        """Cut, make low-rank and recover `job.network` in place."""
        self.preview(job)
        work.learn(job, parts.chosen_objective(job), job.options.recover, "recover-1")

    def preview(self, job: Job) -> None:
        """Apply the plan and learn nothing."""
        # why it was made is told of the run that made it: nothing of that was measured or asked for here
        cuts = replace(self.plan, low_rank=(), why={})
        if cuts.cuts or not self.plan.low_rank:
            parts.cut(job, {}, 1, lambda *_: {}, lambda *_: cuts)
        if self.plan.low_rank:
            self.low_rank.by_plan(job, self.plan.low_rank)
