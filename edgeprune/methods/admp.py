"""Adversarial double masks with a full-size teacher: a reconstruction.

After Feng et al., ADMP: An Adversarial Double Masks Based Pruning Framework for Unsupervised Cross-Domain Compression,
2020, arXiv 2006.04127, whose method section was not to be had. The paper's: a distillation pair of the full-size
teacher and the pruned student; the teacher's pseudo-labels on the target; the difference of their outputs as the
discrepancy of the domains; a soft and a hard mask that are each other's adversaries; ADMM for the hard mask's {0, 1}.
Ours: all that puts it in numbers. With teacher T, student S, hard mask h, soft mask s, both on a network's channels:

    defender, weights and h:  min  CE(S(x_s), y_s) + a [max T >= c] CE(S(x_t), argmax T) + lambda |T - S|_1 / K
    adversary, s = sigmoid(v):  max  lambda |T - S|_1 / K - b CE(S(x_s), y_s)
    subject to h binary with k ones in each layer:  + rho / 2 ||h - z + u||^2,  z = k largest of h + u,  u += h - z

The adversary is a reversed gradient in the same backward pass: the saddle point of both lines is the same as with
ascent steps of its own, which would take further forward passes. Every second image of a batch meets h and s together,
the others h alone, so the network that remains is trained as it will be. Masks take plain gradient steps, one for each
of the weights, on losses in units of the root mean square of their gradient over a layer: so rho and the length of a
step mean the same in every layer of every network, and a channel that does nothing goes where ADMM pulls it, at once.
Expects an adapted network; the teacher is that network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune import snapshot
from edgeprune.methods import learning, parts, recalibrate, work
from edgeprune.methods.job import Job
from edgeprune.objectives.dann import reverse_gradient, strength_at
from edgeprune.objectives.distill import softened_kl
from edgeprune.objectives.ranges import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, SHARE, expect
from edgeprune.objectives.source import labelled, of_rows
from edgeprune.objectives.together import Together
from edgeprune.options import PruneOptions
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.masks import Layout, Values, masked, project
from edgeprune.waist import Batch, Needs, Objective, Step, Task

DECAYS = {"ema": 0.99, "joint": 0.0}  # of a teacher that follows the student's weights
HALF = 0.5  # a mask that is further from what it is rounded to has not settled
OPEN = 2.0  # v at the start: s = 0.88
MEMORY = 0.95  # of the moving averages of the masks' gradients


@dataclass(frozen=True)
class ADMP:
    """See the top of this file; UsageError without labelled source images. How many channels of a layer stay is the
    plan's by --score and --rank (local: the same share everywhere); which of them is the hard mask's.
    soft: the soft mask is the adversary's, or chance's in its place (a channel of an image as likely to stay as the
    adversary's begin), or there is none. admm: else straight through the top k. teacher: "frozen"; "ema" and
    "joint" have the full-size network go on learning beside the masks of the first cut, on a quarter of the source
    images, and the teacher from then on is its moving average, or a copy one step behind.
    threshold: c, how sure T is. pseudo: a, which ramps up as in DANN beside the masks. divergence: l1, or kl(T || S).
    lam: lambda, its weight. b: the adversary's weight of the source. rho0: ADMM's at first. rho1: at last, growing
    geometrically. every: steps between updates of z and u. rate: of the masks' steps, over rho for the hard mask under
    ADMM. passes: over the target with masks, before each cut; weights learn, too; before all cuts but the first they
    are beside --recover. tune: after it, "both" goes on with the first line beside distillation."""

    soft: Literal["adversary", "random", "none"] = "adversary"
    admm: bool = True
    teacher: Literal["frozen", "ema", "joint"] = "frozen"
    threshold: float = 0.9
    pseudo: float = 1.0
    divergence: Literal["l1", "kl"] = "l1"
    lam: float = 1.0
    b: float = 1.0
    rho0: float = 0.1
    rho1: float = 3.0
    every: int = 10
    rate: float = 0.2
    passes: float = 4.0
    tune: Literal["distill", "both"] = "both"

    def __post_init__(self) -> None:
        expect(self, every=AT_LEAST_ONE, rho0=POSITIVE, rho1=POSITIVE, rate=POSITIVE, threshold=SHARE)
        expect(self, passes=NOT_NEGATIVE, pseudo=NOT_NEGATIVE, lam=NOT_NEGATIVE, b=NOT_NEGATIVE)

    def idle(self, options: PruneOptions) -> dict[str, str]:
        """Knobs that do less, or nothing, with these options -> why."""
        of_admm, masks = ("rho0", "rho1", "every"), ("soft", "admm", "teacher", "b", "rate")
        losses = ("threshold", "pseudo", "divergence", "lam")
        found = {} if self.pseudo else {"threshold": "pseudo=0 teaches no label"}
        found |= {} if self.lam else {"divergence": "lam=0 weighs none"}
        found |= {} if self.soft == "adversary" else {"b": f"soft={self.soft} is no adversary"}
        found |= {} if self.admm else dict.fromkeys(of_admm, "admm=false")
        if not self.passes:
            found |= dict.fromkeys((*masks, *of_admm), "passes=0 has no masks")
            found |= dict.fromkeys(losses, "nothing learns from it") if self.tune == "distill" else {}
        return {name: f"has no effect: {why}" for name, why in found.items()}

    @property
    def learns_ranks(self) -> str | None:
        """What a dry run cannot know of the ranks."""
        said = "how many channels of a layer stay is settled, but which, the run's masks find out"
        return said if self.passes else None

    def passes_beside(self, job: Job) -> float:
        """Passes over the target after the first cut that are not of --recover: with the masks before later cuts."""
        return self.passes * (job.cuts - 1)

    def __call__(self, job: Job) -> None:
        """Cut and fine-tune `job.network` in place, within `job.budget`."""
        work.require_source(job, "admp")
        taught = Taught()
        for number, ceiling, passes in work.rounds(job):
            plan = parts.cut(
                job, ceiling, number, parts.score, partial(self._choose, number=number, taught=taught)
            )
            masks = dict(plan.why.get("masks", {}))
            if (gap := masks.get("mask_gap", 0.0)) > HALF:
                job.warnings.append(f"admp: cut {number}: a mask is {gap:.2f} unsettled: raise passes")
            if plan.cuts and self.passes and not (masks.get("images_beside") or job.options.dry_run):
                job.warnings.append(f"admp: cut {number}: masks had less than a step, so --score chose")
            if number > 1:  # after the first cut all that the student sees counts
                job.count("images", masks.pop("images_beside", 0))
            job.trace[-1].update(masks)
            if self.teacher != "frozen" and taught.network is None:
                taught.take_up(job, number)
            objective = parts.chosen_objective(job)
            if self.tune == "both":
                losses = Losses(learning.task(job.network), self, job.shares(compares=False))
                losses.classifies = not objective.needs.source  # --objective has a source loss of its own
                objective = Together([(1.0, objective), (1.0, losses)])
            work.learn(job, objective, passes, f"recover-{number}", teacher=taught.network)

    def _choose(
        self,
        job: Job,
        found: Couplings,
        scores: Mapping[str, Tensor],
        ceilings: Mapping[str, float],
        number: int,
        taught: Taught,
    ) -> PruningPlan:
        """As many channels of each coupling as the plan of the scores keeps; which, the masks find out."""
        # a plan for a latency is met as measured: masks that were begun must meet the same numbers of channels
        made = partial(parts.plan_within, job, found, scores, ceilings)
        plan = PruningPlan.from_json(parts.decided(job, f"mask-{number}-plan", lambda: made().to_json()))
        cut = Couplings(tuple(found[one.root] for one in plan.cuts))
        duel = Duel(learning.task(job.network), self, cut, plan, job.shares(compares=False))
        duel.needs = replace(duel.needs, frozen_statistics=job.moves_statistics)
        if learns := self.teacher != "frozen" and taught.network is None:
            duel.follow(job.network.module)
        steps = work.steps(job, duel, self.passes)
        if not steps or not plan.cuts:  # masks that learned nothing have no say
            return replace(plan, why={**plan.why, "masks": {"swapped": 0, "images_beside": 0}})
        with masked(job.network.module, cut, duel.values):
            teacher = duel.teacher if learns else taught.network
            parts.learn(job, duel, steps, f"mask-{number}", teacher=teacher, validations=0)
        taught.network = teacher
        return duel.plan(plan, steps * work.images_a_step(job, duel))


@dataclass
class Taught:
    """The full-size teacher that learned beside the masks of the first cut, and stays as it was then; None: the dense
    network. Later cuts have no full-size network that could go on learning.
    """

    network: nn.Module | None = None

    def take_up(self, job: Job, number: int) -> None:
        """The teacher of this cut's masks that an earlier process left, when it also made the cut."""
        file = job.run.resume_dir / f"mask-{number}.done" if job.run else None
        if file is not None and file.is_file():
            begin = "objective/teacher."
            held = snapshot.read(file)[0].items()
            state = {name.removeprefix(begin): value for name, value in held if name.startswith(begin)}
            self.network = recalibrate.shadow(job.dense, job.moves_statistics)
            self.network.load_state_dict(state)


class Losses(Objective):
    """The defender's three terms. ramp: whether a grows over the steps. classifies: else the source's term is left to
    what learns beside. classes: (K,), weights of source images."""

    ramp = False
    classifies = True

    def __init__(self, task: Task, how: ADMP, classes: Tensor | None = None) -> None:
        super().__init__(task)
        self.how, self.classes = how, classes
        self.needs = Needs(source=True, teacher=True)

    def clean(self, images: int) -> Tensor:
        """Which rows of a batch of the target meet no adversary, (N,) bool."""
        return torch.ones(images, dtype=torch.bool)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Labelled source, and target with logits (N, K) and the teacher's (N, K)."""
        assert source is not None
        assert target is not None
        assert target.teacher is not None
        how, logits, taught = self.how, target.logits.float(), target.teacher.float()
        sure, label = taught.softmax(1).max(1)
        rows = self.clean(len(logits)).to(logits.device)
        each = F.cross_entropy(logits[rows], label[rows], reduction="none")
        pseudo = (each * (sure[rows] >= how.threshold)).sum() / rows.sum().clamp_min(1)
        a = how.pseudo * (strength_at(step) if self.ramp else 1.0)
        terms = {"pseudo": a * pseudo, "divergence": how.lam * divergence(taught, logits, how.divergence)}
        if self.classifies:
            terms["source"] = labelled(source, weight=of_rows(self.classes, source.labels))
        return terms


def divergence(teacher: Tensor, student: Tensor, kind: str = "l1") -> Tensor:
    """Mean over N of |softmax(teacher) - softmax(student)|_1 / K, or of KL(teacher || student), of logits (N, K)."""
    l1 = (teacher.softmax(1) - student.softmax(1)).abs().mean()
    return softened_kl(teacher, student, 1.0) if kind == "kl" else l1


class Duel(Losses):
    """The losses with masks h and s = sigmoid(v), parameters that take their own steps; u, z and a teacher that learns
    on are part of the state.

    couplings: those that are cut. plan: what of them to keep; its choice is the first z.
    """

    ramp = True
    dual: Tensor
    chosen: Tensor
    slopes: Tensor
    sizes: Tensor

    def __init__(
        self, task: Task, how: ADMP, couplings: Couplings, plan: PruningPlan, classes: Tensor | None = None
    ) -> None:
        super().__init__(task, how, classes)
        self.needs = replace(self.needs, last=True)
        self.layout = Layout(couplings)
        self.keep = {cut.root: len(cut.keep) for cut in plan.cuts}
        self.domain: Literal["source", "target"] = "target"
        first = torch.zeros(self.layout.size, dtype=torch.bool)
        for cut in plan.cuts:
            first[[self.layout.places[cut.root].start + channel for channel in cut.keep]] = True
        self.register_buffer("chosen", first)
        self.register_buffer("dual", torch.zeros(self.layout.size))
        low = 0.0 if how.admm else 0.5  # the top k of straight through must begin as the plan has it
        self.hard = nn.Parameter(1 - low * (~first).float())
        self.tilt = nn.Parameter(torch.full((self.layout.size,), OPEN))
        self.register_buffer("slopes", torch.zeros(2, self.layout.size))
        self.register_buffer("sizes", torch.zeros(2, len(self.layout.places)))
        self.teacher: nn.Module | None = None
        self._student: tuple[nn.Module, ...] = ()  # in a tuple: no part of this module

    def follow(self, module: nn.Module) -> None:
        """Have a teacher of its own, which follows the weights of `module`."""
        self.teacher, self._student = recalibrate.shadow(module, self.needs.frozen_statistics), (module,)

    def train(self, mode: bool = True) -> Duel:
        """As always; a teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def clean(self, images: int) -> Tensor:
        """Every second row, (N,) bool; all without a soft mask."""
        return super().clean(images) if self.how.soft == "none" else torch.arange(images) % 2 == 0

    def before_forward(self, domain: Literal["source", "target"]) -> None:
        """The adversary wants other things of the two domains."""
        self.domain = domain

    def values(self, images: int, training: bool) -> Values:
        """root -> masks (C,) or (N, C) of a forward pass; z where the network is only looked at."""
        if not training:
            return self.layout.split(self.chosen.float())
        mask: Tensor = self.hard
        if not self.how.admm:
            self.chosen = project(self.layout, self.hard, self.keep)
            mask = self.chosen.float() + self.hard - self.hard.detach()
        if self.how.soft != "none":
            mask = torch.where(self.clean(images).to(mask.device)[:, None], mask, mask * self._soft(images))
        if self.teacher is not None and self.domain == "source":
            full = (torch.arange(images) % 4 == 0).to(mask.device)[:, None]
            mask = torch.where(full, torch.ones_like(mask), mask)
        return self.layout.split(mask)

    def _soft(self, images: int) -> Tensor:
        """s, (C,) or (N, C)."""
        if self.how.soft == "random":
            return torch.bernoulli(self.tilt.detach().sigmoid().expand(images, -1))
        return reverse_gradient(self.tilt.sigmoid(), 1.0 if self.domain == "target" else -self.how.b)

    def rho(self, step: Step) -> float:
        """Geometric from rho0 to rho1, constant between two updates."""
        updates = max(1, step.total // self.how.every)
        done = min(step.number // self.how.every, updates)
        return float(self.how.rho0 * (self.how.rho1 / self.how.rho0) ** (done / updates))

    @torch.no_grad()
    def before_update(self, step: Step) -> None:
        """A step of h and v; z and u every few of them. The optimiser has nothing left to do for these."""
        rho, rate = self.rho(step), self.how.rate
        if not all(m.grad is None or bool(m.grad.isfinite().all()) for m in (self.hard, self.tilt)):
            self.hard.grad = self.tilt.grad = None  # 16 bits overflowed: no one takes this step
            return
        slope = self._slope(0, self.hard, step)
        if self.how.admm:  # where L is linear this goes the share `rate` of the way to the least
            self.hard.sub_(rate * (slope / rho + self.hard - self.chosen.float() + self.dual))
        else:
            self.hard.sub_(rate * slope)
        self.hard.clamp_(0.0, 1.0)
        if self.how.soft == "adversary":
            self.tilt.sub_(rate * self._slope(1, self.tilt, step))
        following = Step(step.number + 1, step.total)
        if self.how.admm and following.number % self.how.every == 0:
            self.chosen = project(self.layout, self.hard + self.dual, self.keep)
            self.dual += self.hard - self.chosen.float()
            self.dual *= rho / self.rho(following)  # in units of 1 / rho: Boyd et al. 2011, section 3.4.1
        if self.teacher is not None:
            decay = DECAYS[self.how.teacher]
            for mine, now in zip(self.teacher.parameters(), self._student[0].parameters(), strict=True):
                mine.lerp_(now, 1 - decay)

    def _slope(self, row: int, mask: nn.Parameter, step: Step) -> Tensor:
        """The moving average of a mask's gradient (size,) over the root of that of its mean square in each layer."""
        now = mask.grad if mask.grad is not None else torch.zeros_like(mask)
        mask.grad = None
        square = torch.stack([part.square().mean() for part in self.layout.split(now).values()])
        self.slopes[row].lerp_(now, 1 - MEMORY)
        self.sizes[row].lerp_(square, 1 - MEMORY)
        so_far = 1 - MEMORY ** (step.number + 1)  # both began at 0
        size = (self.sizes[row] / so_far).sqrt().clamp_min(1e-12)
        widths = torch.tensor([one.width for one in self.layout.couplings], device=size.device)
        return self.slopes[row] / so_far / size.repeat_interleave(widths)

    @torch.no_grad()
    def plan(self, first: PruningPlan, images: int = 0) -> PruningPlan:
        """`first` with the hard mask's channels. why["masks"]: how many of them `first` had not, the largest |h - z|
        that was left, and the images that the masks were trained on.
        """
        score = self.hard + self.dual if self.how.admm else self.hard
        kept = self.layout.split(project(self.layout, score, self.keep).cpu())
        cuts, swapped = [], 0
        for cut in first.cuts:
            keep = tuple(int(c) for c in kept[cut.root].nonzero().flatten())
            swapped += len(set(keep) - set(cut.keep))
            cuts.append(Cut(cut.root, cut.width, keep))
        facts: dict[str, Any] = {"swapped": swapped, "images_beside": images}
        if self.how.admm:
            gap = (self.hard - torch.cat(list(kept.values())).to(self.hard).float()).abs()
            facts["mask_gap"] = float(gap.max()) if len(gap) else 0.0
        return PruningPlan(tuple(cuts), first.low_rank, {**first.why, "masks": facts})
