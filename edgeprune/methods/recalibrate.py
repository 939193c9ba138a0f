"""Batch-norm statistics after a cut, which changes what enters every layer behind it.

What it must satisfy: where the target has all classes, statistics are the target's. Where it lacks some
(`job.partial`), the target's are those of other classes, so the network keeps its own, moved as far as the target's
moved: in every channel that is left, the mean and variance that the target has behind the norm are what they were
before the cut (no variance is below 0, though). Both are measured with each layer normalised by the target's, as
`inference.reestimate_batchnorm` does. A network whose statistics were the target's has the target's afterwards, in
either case. Taking the target's is AdaBN (Li et al. 2016, arXiv 1603.04779); moving one's own is ours.

A student that a teacher answers to about the target learns under the target's statistics, whichever classes it holds:
the answers do not depend on them; so does admp's after each cut, swmmd's after its last, and itmc's with `source`
beside. What else learns from
the source, or by comparing the domains, keeps its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune import inference
from edgeprune.methods.job import Job
from edgeprune.waist import Objective


def twin(job: Job) -> nn.Module | None:
    """A copy of the network with the target's statistics, to be cut beside it; None where `after` needs none."""
    if not job.moves_statistics:
        return None
    theirs = copy.deepcopy(job.network.module)
    _take(job, theirs)
    return theirs


def after(job: Job, module: nn.Module, theirs: nn.Module | None) -> None:
    """Give a network that was cut, in place, statistics that fit it.

    theirs: its `twin`, cut alike, whose statistics tell how far the target's moved; None takes the target's.
    """
    if theirs is None:
        _take(job, module)
        return
    own = [[value.clone() for value in _statistics(norm)] for norm in _norms(module)]
    _take(job, module)
    for norm, old, (mean, variance) in zip(_norms(module), _norms(theirs), own, strict=True):
        _move(norm, old, mean, variance)


def keep_statistics(job: Job, objective: Objective) -> None:
    """Change `objective.needs` so that a partial job learns with its statistics as they are; `objective.partial`, too.

    With a teacher's answers it need not, unless the objective says so. Before the first cut the statistics may be
    blended with the target's (validate.settle_batchnorm), after a cut only if it kept the source's: what a cut moved is
    left alone. With `--no-bn-recal`, or where training on the source is to take the source's, the loop does as the
    objective says.
    """
    if not job.moves_statistics:
        return
    objective.partial = True
    if objective.needs.teacher and not objective.needs.frozen_statistics:
        return
    moved = any("agreement_after_batchnorm" in entry for entry in job.trace)
    settles = not moved and (objective.needs.statistics or bool(job.trace))
    objective.needs = replace(objective.needs, frozen_statistics=True, statistics=settles)


@torch.no_grad()
def _move(norm: _BatchNorm, old: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """norm: with the target's now, changed in place. old: with the target's before. mean, variance: its own then."""
    (now, spread), (was, spread_was) = _statistics(norm), _statistics(old)
    grown = (spread + norm.eps) / (spread_was + norm.eps)
    now.sub_((was - mean) * grown.sqrt())
    spread.copy_(((variance + norm.eps) * grown - norm.eps).clamp_min(0))


def _take(job: Job, module: nn.Module) -> None:
    inference.reestimate_batchnorm(module, job.target, job.network.preprocess)


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _norms(module: nn.Module) -> Iterator[_BatchNorm]:
    return (m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None)


def shadow(module: nn.Module, moves: bool) -> nn.Module:
    """A frozen copy that normalises by the batch, as running statistics are of other weights; by those if `moves`."""
    copied = copy.deepcopy(module).requires_grad_(False).eval()
    for norm in () if moves else copied.modules():
        if isinstance(norm, _BatchNorm):
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    return copied
