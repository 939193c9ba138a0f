"""Equal work: from passes to steps, so that methods are compared at one number of images.

What it must satisfy: with `--recover P` a method that counts by this file shows the student P times the number of
target images after its first cut, source and target images and every view together, however many cuts it makes (admp
adds the masks before its later cuts); what it sees before is "images_before".
Forward passes for scoring, for agreement and for batch-norm, and those of a frozen teacher, are not training and not
counted. Images that a teacher of its own is trained on, or the student beside masks before the first cut, are counted
apart ("images_beside").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from edgeprune import inference
from edgeprune.errors import UsageError
from edgeprune.methods import parts
from edgeprune.methods.job import Job
from edgeprune.waist import Objective

USUAL = "auto"  # the adaptation objective where one is needed and none is named


def several(job: Job, own: int, schedule: str) -> Job:
    """The job with the method's own number of cuts and schedule where the user said none."""
    own, schedule = job.options.iterations or own, job.options.schedule or schedule
    return parts.as_if(job, iterations=own, schedule=schedule)


def require_source(job: Job, method: str) -> None:
    """UsageError when there are no labelled source images."""
    if job.source is None or job.source.labels is None:
        raise UsageError(
            f"--method {method} learns from labelled source images: give --source DIR, or take --method distill"
        )


def images_a_step(job: Job, objective: Objective) -> int:
    """Images that the student sees in one step of training: each target view, and the source, of every batch of it."""
    needs, batch = objective.needs, job.options.batch
    seen = len(needs.views) * min(batch, len(job.target))
    if (needs.source or needs.welcome_source) and job.source is not None:
        seen += min(batch, len(job.source))
    return max(1, seen) * job.options.accumulate


def steps(job: Job, objective: Objective, passes: float) -> int:
    """Optimiser steps in which the student sees `passes` times as many images as the target has; none in a dry run."""
    return 0 if job.options.dry_run else round(passes * len(job.target) / images_a_step(job, objective))


def due(job: Job, objective: Objective, passes: float, who: str = "student") -> int:
    """The same for one of several stages, with what earlier stages left: many short ones add up to what was asked."""
    if job.options.dry_run:
        return 0
    each = images_a_step(job, objective)
    owed = passes * len(job.target) + job.owed.get(who, 0.0)
    count = max(0, round(owed / each))
    job.owed[who] = owed - count * each
    return count


def shares(job: Job) -> list[float]:
    """Passes after each cut: `--between` after all but the last, at most half of `--recover`; they add up to it."""
    cuts, total = job.cuts, job.options.recover
    short = min(job.options.between, total / 2 / (cuts - 1)) if cuts > 1 else 0.0
    return [short] * (cuts - 1) + [total - short * (cuts - 1)]


def rounds(job: Job) -> Iterator[tuple[int, dict[str, float], float]]:
    """Each cut's number, from 1, its absolute ceilings, and the passes after it."""
    for number, (ceilings, passes) in enumerate(zip(parts.limits(job), shares(job), strict=True), start=1):
        yield number, ceilings, passes


def learn(
    job: Job,
    objective: Objective,
    passes: float,
    stage: str,
    *,
    teacher: nn.Module | None = None,
    choose: bool = False,
) -> None:
    """Train the student for `passes`, and add to the trace's last cut the images seen and the agreement reached; what
    it sees before there is one is the first cut's "images_before".

    choose: label-free validators choose among its checkpoints, and see a collapse; else the last weights are kept, as
    sure predictions say little where the objective does not ask for them. Batch-norm is re-estimated on the target
    afterwards: what learns for a few steps, or from the source alone, leaves running statistics of other weights;
    unless the objective or a partial job keeps them as they are while it learns.
    """
    count = due(job, objective, passes)
    if count < 1:
        return
    if not choose:
        objective.needs = replace(objective.needs, last=True)
    looks = 3 if choose else int(passes >= 1)  # a look takes as long as training on half a pass
    fit = parts.learn(job, objective, count, stage, teacher=teacher, validations=looks)
    if job.options.bn_recal and not objective.needs.frozen_statistics:
        inference.reestimate_batchnorm(job.network.module, job.target, job.network.preprocess)
    job.count("images" if job.trace else "images_before", count * images_a_step(job, objective))
    if job.trace:
        entry = job.trace[-1]
        entry["steps_kept"] = entry.get("steps_kept", 0) + fit.chosen_step
        entry["agreement_after_recovery"] = parts.agreement(job)


def adapting(job: Job, usual: str = USUAL) -> Objective:
    """The adaptation objective of the options; `usual` where none is named."""
    name = usual if job.options.objective == "none" else job.options.objective
    return parts.adapting(job, name)
