"""The narrow waist between the training loop and the objectives: an objective says what it needs and returns terms.

The loop knows no objective by name; an objective knows no device, optimiser or file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from edgeprune.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """One domain's images after the forward pass; the first of the views asked for is the main one.

    features (N, D) float: what enters the classifier. logits (N, K). labels (N,) int64, or None for a target.
    index (N,) int64 into the set. views: name -> (features, logits) of every view, the main one included.
    layers: name -> what entered a layer that was asked for. teacher (N, K), teacher_layers: the frozen teacher's logits
    on the main view, and what entered the same layers of it.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor | None
    index: Tensor
    views: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: Tensor | None = None
    teacher_layers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Where training is: step `number` of `total`, counted from 0."""

    number: int
    total: int

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the last step."""
        return self.number / max(1, self.total - 1)

    def rate(self, warmup: float, decay: str = "cosine") -> float:
        """Share of the peak learning rate: linear over the share `warmup` of the steps, then it falls.

        cosine: to 0. inverse: (1 + 10 p)^-0.75 over the progress p since the peak (Ganin et al. 2016, section 5.2.2).
        """
        first = max(1, round(warmup * self.total))
        if self.number < first:
            return (self.number + 1) / first
        since = (self.number - first) / max(1, self.total - first)
        return (1 + 10 * since) ** -0.75 if decay == "inverse" else 0.5 * (1 + math.cos(math.pi * since))


@dataclass(frozen=True)
class Needs:
    """What an objective wants from the loop.

    source: labelled source batches. welcome_source: they are taken when given. source_view: how they are changed.
    views: of the target, the first is the main one; none: the target is not used. layers: dotted names of layers; what
    enters them on the main views is handed over. teacher: the frozen teacher's logits, and what enters those layers of
    it. refresh: features and logits of the whole target before each pass over it; averaged: by the running average of
    the weights, a mean teacher, where one is kept. freeze_classifier: it does not learn,
    unless labelled source images take part.
    statistics: batch-norm is re-estimated on the target before the first step; blend: the share of the target's
    statistics then, 0 for what their number says (validate.share_of). train: False when that is all.
    norms_only: only the gains and shifts of normalisation layers learn (Tent). last: the last weights are kept, not
    those the validators like best; for a part of training on the way to something else. welcome_beside: Task.beside
    is used when given; welcome_settled: Task.settled is. frozen_statistics: batch-norm normalises by running
    statistics while the network learns; with `statistics` these are a blend of the network's own and the target's,
    see validate.settle_batchnorm. gentle: the learning rate is a fifth, unless the user gives one. own_rate: factor of
    the learning rate for the objective's own parameters.
    """

    source: bool = False
    views: tuple[str, ...] = ("train",)
    layers: tuple[str, ...] = ()
    teacher: bool = False
    refresh: bool = False
    averaged: bool = False
    freeze_classifier: bool = False
    statistics: bool = False
    train: bool = True
    norms_only: bool = False
    last: bool = False
    welcome_source: bool = False
    source_view: str = "train"
    welcome_beside: bool = False
    welcome_settled: bool = False
    frozen_statistics: bool = False
    gentle: bool = False
    blend: float = 1.0
    own_rate: float = 1.0

    def require(self, name: str, *, source: bool, teacher: bool) -> None:
        """UsageError, with the objective's name, when labelled source images or a teacher are needed and not given."""
        if self.source and not source:
            raise UsageError(f"{name} needs labelled source images")
        if self.teacher and not teacher:
            raise UsageError(f"{name} needs a teacher network")


@dataclass(frozen=True)
class Task:
    """What an objective may know of a network: D features enter the classifier, K classes leave it.

    beside (M, D'): what the network before its fine-tuning makes of the M target images, when that is at hand.
    settled: how far neighbouring target images are called alike, when no source is there to learn from; near 1 where
    the shift is small, see edgeprune.objectives.propagation.settled.
    """

    features: int
    classes: int
    beside: Tensor | None = None
    settled: float | None = None


@dataclass(frozen=True)
class NoKnobs:
    """For an objective that has nothing to set."""


class Objective(nn.Module):
    """Something to minimise. Its parameters and buffers are trained, saved and resumed with the network's.

    `Knobs` is a frozen dataclass: what a user may set with --set, typed, with defaults. `partial`: the target may lack
    classes of the source, so a validator must not want all of them, and batch-norm statistics of the target are those
    of other classes, too: they are blended in as far as they help, and stay as they are.
    """

    Knobs: type = NoKnobs
    needs: Needs = Needs()
    partial: bool = False

    def __init__(self, task: Task, knobs: Any = None) -> None:
        super().__init__()
        self.task = task
        self.knobs = knobs if knobs is not None else self.Knobs()
        self.partial = self.partial or bool(getattr(self.knobs, "partial", False))
        if self.partial:
            self.needs = replace(self.needs, statistics=True, frozen_statistics=True)

    def refresh(self, features: Tensor, logits: Tensor) -> None:
        """Take in features (M, D) and logits (M, K) of the whole target; called before each pass when asked for."""

    def before_forward(self, domain: Literal["source", "target"]) -> None:
        """Called before each forward pass of the student, with whose images they are."""

    def before_update(self, step: Step) -> None:
        """Called once a step: the gradients of the whole loss are there, and nothing has moved yet."""

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Named scalar losses; the loop minimises their sum. Source and target are there when `needs` says so."""
        raise NotImplementedError(f"{type(self).__name__} states no terms")
