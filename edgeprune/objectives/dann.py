"""Adversarial alignment: a discriminator that tells the domains' features apart must be fooled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.objectives.ranges import AT_LEAST_ONE, NOT_NEGATIVE, expect
from edgeprune.objectives.source import PartialKnobs, WithSource
from edgeprune.waist import Batch, Needs, Step, Task

NEW_LAYERS_RATE = 10.0  # factor of the learning rate for layers that start from nothing
# Of the adversarial term: about what TLLib's ramp, 2 / (1 + exp(-t / 1000)) - 1, is at step t = 200.
WEIGHT = 0.1


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Identity forwards; the gradient times -strength backwards (Ganin and Lempitsky, ICML 2015, arXiv 1409.7495)."""
    out: Tensor = _Reverse.apply(x, strength)
    return out


def strength_at(step: Step) -> float:
    """lambda = 2 / (1 + exp(-10 p)) - 1 over training progress p, 0 to almost 1 (Ganin et al., 2016, section 5.2.2)."""
    return 2 / (1 + math.exp(-10 * step.progress)) - 1


def domain_loss(judged: Tensor, sources: int, weight: Tensor | None) -> Tensor:
    """Cross entropy, a scalar, of the discriminator's logits (N,), whose first `sources` rows are the source."""
    judged = judged.float()
    domain = torch.zeros_like(judged)
    domain[:sources] = 1
    return F.binary_cross_entropy_with_logits(judged, domain, weight)


class DANN(WithSource):
    """CE on the source + BCE(D(R(f))), R the reversal of the gradient with strength weight * lambda.

    Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, arXiv 1505.07818, eq. 9 and 18.
    f: features. `partial`: the source half is weighted by class as well (see WithSource). D learns at ten times the
    network's rate, as in the authors' code of CDAN and in TLLib: one that learns as slowly as a trained network is
    fooled by features that flip from side to side, and teaches nothing. Ours: the weight is a tenth of the paper's,
    whose networks train for thousands of steps; in hundreds, with all of it, D's mistakes tear a trained one about.
    """

    @dataclass(frozen=True)
    class Knobs(PartialKnobs):
        """weight: of what the discriminator teaches, which itself learns as fast. hidden: its width."""

        weight: float = WEIGHT
        hidden: int = 256

        def __post_init__(self) -> None:
            expect(self, weight=NOT_NEGATIVE, hidden=AT_LEAST_ONE)

    needs = Needs(source=True, own_rate=NEW_LAYERS_RATE)
    compares = True

    def __init__(self, task: Task, knobs: Any = None) -> None:
        super().__init__(task, knobs)
        hidden = self.knobs.hidden
        self.discriminator = nn.Sequential(nn.Linear(task.features, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Both batches with features (N, D)."""
        assert source is not None
        assert target is not None
        features = torch.cat([source.features, target.features]).float()
        strength = self.knobs.weight * strength_at(step)
        judged = self.discriminator(reverse_gradient(features, strength)).squeeze(1)
        weight = self.weights(source)
        both = (
            torch.cat([weight, torch.ones_like(target.features[:, 0].float())])
            if weight is not None
            else None
        )
        loss = domain_loss(judged, len(source.logits), both)
        return {"source": self.labelled(source), "dann": loss}
