"""Iterative transfer distillation and adaptive channel pruning, in alternation: a reconstruction.

After Wang et al., Iterative Transfer Model Compression, Pattern Recognition 164 (2025) 111512, whose method section is
not public. Known of it: two parts in alternation; teacher and student adapt to the target step by step, and the
teacher, updated meanwhile, guides the student; how much is pruned depends on the epoch, and what is pruned on the loss
of the distilled student. Ours: all that puts it in numbers. Teacher and student learn in turn as in KD_UDA (Nguyen-
Meidine et al., 2020, arXiv 2005.07839), but: the teacher is detached; KL(teacher || student), which its code has the
other way round; the student learns on the target alone, as the source would take half of the images it sees; turns of
many steps in place of one each; the teacher's losses at full weight all along in place of beta from 0.1 to 0.9, and its
MMD without a ramp; tau 2 in place of 20. "The loss of the distilled student" ranks by what a channel adds to it to
second order, since to first order a student that answers as its teacher does loses nothing: of KL(teacher || student)
at tau 1 the Gauss-Newton part of the second derivative by a gate is label-free Taylor's (scores/taylor.py), whoever the
teacher is. Expects an adapted network: student and teacher both begin as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune import inference, train
from edgeprune.errors import UsageError
from edgeprune.methods import learning, parts, recalibrate, work
from edgeprune.methods.job import Job
from edgeprune.methods.tcp import discrepancy, weights
from edgeprune.objectives.dan import DAN
from edgeprune.objectives.distill import Distill, softened_kl
from edgeprune.objectives.ranges import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, expect
from edgeprune.objectives.source import Source
from edgeprune.objectives.together import Together
from edgeprune.options import PruneOptions
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.scores.transfer import Pairs, Pass, Transfer, additive
from edgeprune.waist import Objective

# Of --recover, beside it, for the slice before the first cut: with six cuts there are nine slices, and it is as long.
BEFORE = 1 / 9


@dataclass(frozen=True)
class ITMC:
    """See the top of this file; UsageError without labelled source images.

    cuts: when --steps is not given, large ones first (cubic); each is followed by a slice of training, the last by half
    as many more, so nothing is pruned in the last third. A slice before them is beside --recover, a ninth of it
    ("images_before"). after: turns into which the last stretch is split, each with a turn of the teacher and learning
    rates of its own. teacher: "trained" on source and target before each slice, or "fixed". teacher_lr: its peak
    rate, a share of --lr. tau: temperature that divides the logits. discrepancy: weight of the student's own MMD.
    source: weight of its cross entropy on source. score: by the distillation to second order ("distilled"), by the
    student's whole loss to first order ("student"), by the cross entropy on source alone ("source"), or by --score
    ("given"). batches: of both domains, for one ranking by "student" or "source". distill: without it there is no
    teacher, only pruning; give source=1 to learn from.
    """

    cuts: int = 6
    after: int = 1
    teacher: Literal["trained", "fixed"] = "trained"
    teacher_lr: float = 0.1
    tau: float = 2.0
    discrepancy: float = 0.0
    source: float = 0.0
    batches: int = 8
    score: Literal["distilled", "student", "source", "given"] = "distilled"
    distill: bool = True

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        own = {} if self.score == "given" else {"score": "its own ranks, unless --set score=given"}
        return {"between": "as many passes after each cut", **own, **self._untaught, **self._unread}

    @property
    def _untaught(self) -> dict[str, str]:
        """No objective is looked at where the teacher does not learn."""
        still = self.teacher == "fixed" or not self.distill
        return {"objective": "its teacher does not learn on"} if still else {}

    @property
    def _unread(self) -> dict[str, str]:
        """The source has a say in the teacher's learning, the student's, or the ranks; else in none."""
        heard = self.teacher == "trained" or self.source or self.discrepancy
        unread = not heard and self.score == "distilled"
        return {"source": "teacher=fixed, and the student learns on the target"} if unread else {}

    def idle(self, options: PruneOptions) -> dict[str, str]:
        """Knobs that do less, or nothing, with these options -> why."""
        found = {"batches": "has no effect: --score ranks"} if self.score == "given" else {}
        if self.score == "distilled":
            found = {"batches": "has no effect: the target's images rank, as with --score taylor"}
        if not self.distill:
            why = "has no effect: distill=false leaves no teacher"
            return found | dict.fromkeys(("teacher", "teacher_lr", "tau"), why)
        if self.teacher == "fixed":
            found["teacher_lr"] = "has no effect: teacher=fixed does not learn"
        return found

    def __post_init__(self) -> None:
        expect(
            self,
            cuts=AT_LEAST_ONE,
            after=AT_LEAST_ONE,
            batches=AT_LEAST_ONE,
            teacher_lr=POSITIVE,
            tau=POSITIVE,
        )
        expect(self, discrepancy=NOT_NEGATIVE, source=NOT_NEGATIVE)
        if not (self.distill or self.source or self.discrepancy):
            raise UsageError(
                "--method itmc: with distill=false there is nothing to learn from; add --set source=1"
            )

    def __call__(self, job: Job) -> None:
        """Cut and distil `job.network` in place, within `job.budget`."""
        work.require_source(job, "itmc")
        job = work.several(job, self.cuts, "cubic")
        cuts = job.cuts
        last = 1 + (cuts + 1) // 2  # slices from the last cut on
        each = job.options.recover / (cuts - 1 + last)
        teacher = self._teacher(job)
        self._slice(job, teacher, BEFORE * job.options.recover, "before")
        for number, ceiling in enumerate(parts.limits(job), start=1):
            parts.cut(job, ceiling, number, partial(self._rank, teacher=teacher))
            if number < cuts:
                self._slice(job, teacher, each, f"slice-{number}")
        for number in range(cuts, cuts + self.after):
            self._slice(job, teacher, last * each / self.after, f"slice-{number}")

    def _teacher(self, job: Job) -> nn.Module:
        """A network of its own: `job.dense` stays the reference that agreement is measured with."""
        return copy.deepcopy(job.dense).requires_grad_(True)

    def _slice(self, job: Job, teacher: nn.Module, passes: float, stage: str) -> None:
        """The teacher goes on adapting, then the student learns from it; as many images for either."""
        if self.teacher == "trained" and self.distill:
            self._teach(job, teacher, passes, f"teacher-{stage}")
        work.learn(job, self.objective(job), passes, stage, teacher=teacher)

    def _teach(self, job: Job, teacher: nn.Module, passes: float, stage: str) -> None:
        adapting = self._adapting(job, teacher)
        adapting.needs = replace(adapting.needs, last=True)
        count = work.due(job, adapting, passes, "teacher")
        if count < 1:
            return
        settings = learning.settings(job.options, count, 0)
        settings = replace(settings, lr=self.teacher_lr * settings.lr)
        network = replace(job.network, module=teacher)
        begun = sum(job.steps)  # begins with the batches that the student's next slice begins with
        recalibrate.keep_statistics(job, adapting)
        train.fit(network, adapting, job.target, job.source, settings, run=job.run, stage=stage, begun=begun)
        job.count("images_beside", count * work.images_a_step(job, adapting))
        if job.options.bn_recal and not adapting.needs.frozen_statistics:
            inference.reestimate_batchnorm(teacher, job.target, job.network.preprocess)

    def _adapting(self, job: Job, teacher: nn.Module) -> Objective:
        """What the teacher learns: CE on the source + MMD, or the objective of the options, for its own features."""
        network = replace(job.network, module=teacher)
        if job.options.objective != "none":
            return work.adapting(replace(job, network=network))
        return DAN(learning.task(network), DAN.Knobs(partial=job.partial))

    def objective(self, job: Job) -> Objective:
        """What the student learns: w CE(source) + tau^2 KL(teacher || student) on the target + delta MMD."""
        task = learning.task(job.network)
        terms: list[tuple[float, Objective]] = []
        if self.distill:
            terms.append((1.0, Distill(task, Distill.Knobs(temperature=self.tau))))
        if self.discrepancy:  # DAN has the cross entropy with it
            knobs = DAN.Knobs(weight=self.discrepancy, source=self.source, partial=job.partial)
            terms.append((1.0, DAN(task, knobs)))
        elif self.source:
            terms.append((self.source, Source(task, Source.Knobs(smoothing=0.0, partial=job.partial))))
        student = Together(terms)
        if self.distill and not self.discrepancy:  # see `recalibrate` of what a teacher answers to
            student.needs = replace(student.needs, frozen_statistics=False, statistics=False)
        return student

    def _rank(self, job: Job, found: Couplings, teacher: nn.Module) -> Mapping[str, Tensor]:
        if self.score == "given":
            return parts.score(job, found)
        if self.score == "distilled":
            return parts.score(parts.as_if(job, score="taylor"), found)
        assert job.source is not None
        pairs = Pairs(
            job.source,
            job.target,
            job.network.preprocess,
            self.batches,
            job.options.batch,
            job.options.seed,
        )
        losses = StudentLosses(self, teacher.eval(), job.shares(compares=self.discrepancy > 0))
        frozen = job.moves_statistics and (self.discrepancy > 0 or not self.distill)
        transfer = Transfer(pairs, losses, job.network.classifier, per_layer=True, frozen=frozen)
        return additive(transfer(job.network.module, found))


@dataclass(frozen=True)
class StudentLosses:
    """The student's loss, split by the domain whose activations answer for it: CE and MMD, distillation and MMD."""

    knobs: ITMC
    teacher: nn.Module
    classes: Tensor | None = None  # (K,), how much source images of each count; None: alike

    def __call__(self, source: Pass, target: Pass) -> tuple[Tensor, Tensor]:
        """The two scalars; the other domain and the teacher are constants."""
        assert source.labels is not None
        knobs, rows = self.knobs, weights(source, self.classes)
        of_source = (rows * F.cross_entropy(source.logits, source.labels, reduction="none")).mean()
        of_target = 0.0 * target.logits.sum()
        if knobs.score == "source":
            return of_source, of_target
        of_source = knobs.source * of_source
        if knobs.distill:
            with torch.no_grad():
                taught = self.teacher(target.images)
            of_target = of_target + softened_kl(taught, target.logits, knobs.tau)
        if knobs.discrepancy:
            here, there = source.features, target.features
            of_source = of_source + knobs.discrepancy * discrepancy(here, there.detach(), rows)
            of_target = of_target + knobs.discrepancy * discrepancy(here.detach(), there, rows)
        return of_source, of_target
