"""Conditional adversarial alignment: a discriminator that sees features and predictions together must be fooled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.objectives.dann import (
    NEW_LAYERS_RATE,
    WEIGHT,
    domain_loss,
    reverse_gradient,
    strength_at,
)
from edgeprune.objectives.ranges import AT_LEAST_ONE, NOT_NEGATIVE, expect
from edgeprune.objectives.source import PartialKnobs, WithSource
from edgeprune.waist import Batch, Needs, Step, Task

MOST_PRODUCT = 4096  # a larger outer product is replaced by random maps, as in the paper


class CDAN(WithSource):
    """CE on the source + BCE of D(R(f x g)) with entropy weights, CDAN+E, R the reversal with strength weight * lambda.

    Long et al., NeurIPS 2018, arXiv 1705.10667, eq. 5, 6 and 8. f: features, g: softmax of the logits, detached as in
    the authors' code. lambda is 2 / (1 + exp(-10 p)) - 1 over training progress p (DANN). Ours: the entropy weights are
    constants (the authors' let a reversed gradient through), and the discriminator's one hidden layer. That learns at
    ten times the network's rate, and the weight is a tenth of the paper's, as in DANN.
    """

    @dataclass(frozen=True)
    class Knobs(PartialKnobs):
        """weight: of what the discriminator teaches, which itself learns as fast. hidden: its width. entropy: the +E
        weights.
        """

        weight: float = WEIGHT
        hidden: int = 256
        entropy: bool = True

        def __post_init__(self) -> None:
            expect(self, weight=NOT_NEGATIVE, hidden=AT_LEAST_ONE)

    needs = Needs(source=True, own_rate=NEW_LAYERS_RATE)
    compares = True
    feature_map: Tensor
    class_map: Tensor

    def __init__(self, task: Task, knobs: Any = None) -> None:
        super().__init__(task, knobs)
        product = task.features * task.classes
        self.random = product > MOST_PRODUCT
        size = 1024 if self.random else product
        if self.random:  # buffers, so that a resumed run keeps the same maps
            self.register_buffer("feature_map", torch.randn(task.features, size))
            self.register_buffer("class_map", torch.randn(task.classes, size))
        hidden = self.knobs.hidden
        self.discriminator = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Both batches with features (N, D) and logits (N, K)."""
        assert source is not None
        assert target is not None
        features = torch.cat([source.features, target.features]).float()
        g = torch.cat([source.logits, target.logits]).float().softmax(1).detach()
        strength = self.knobs.weight * strength_at(step)
        judged = self.discriminator(reverse_gradient(self.joint(features, g), strength)).squeeze(1)
        weight = entropy_weights(g, len(source.logits)) if self.knobs.entropy else None
        by_class = self.weights(source)
        if by_class is not None:
            rest = torch.ones_like(judged) if weight is None else weight
            both = by_class * rest[: len(by_class)]
            weight = torch.cat([both / both.mean().clamp_min(1e-12), rest[len(by_class) :]])
        loss = domain_loss(judged, len(source.logits), weight)
        return {"source": self.labelled(source), "cdan": loss}

    def joint(self, features: Tensor, g: Tensor) -> Tensor:
        """The multilinear map f x g, (N, D K), or (R_f f) * (R_g g) / sqrt(d), (N, d), when that is too wide."""
        if not self.random:
            return (features.unsqueeze(2) * g.unsqueeze(1)).flatten(1)
        d = self.feature_map.shape[1]
        return (features @ self.feature_map) * (g @ self.class_map) / math.sqrt(d)


def entropy_weights(g: Tensor, sources: int) -> Tensor:
    """w = 1 + exp(-H(g)), (N,), with mean 1 in each domain; the first `sources` rows are the source (eq. 8)."""
    w = 1 + torch.exp((g * g.clamp_min(1e-12).log()).sum(1))
    return torch.cat([part / part.mean() for part in (w[:sources], w[sources:])])
