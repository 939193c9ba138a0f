"""Partial adaptation: source classes that the target does not show fade out of the discrepancy, softly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.objectives.dann import strength_at
from edgeprune.objectives.mmd import gaussian_kernels, squared_mmd
from edgeprune.objectives.ranges import NOT_NEGATIVE, SHARE, expect
from edgeprune.objectives.shot import mean_entropy
from edgeprune.objectives.source import labelled
from edgeprune.waist import Batch, Needs, Objective, Step, Task


class SWMMD(Objective):
    """sum_i a_i CE_i + lambda || sum_i a_i phi(s_i) - mean_j phi(t_j) ||^2 + mu mean_j H(p_j), a_i = w_yi / sum w_y.

    After Ma et al., Small Is Beautiful: Compressing Deep Neural Networks for Partial Domain Adaptation, TNNLS 2022.
    A reconstruction: its text was not to be had. w (K,): moving average of the mean of p over target batches, mean 1;
    five Gaussian kernels; lambda ramps as in DANN. `through`: the gradient of the discrepancy also reaches w.
    """

    @dataclass(frozen=True)
    class Knobs:
        """weight: peak of lambda. entropy: mu, its weight. momentum: of the average w. through: gradient through w.

        partial: always, since w is what it is made of.
        """

        weight: float = 1.0
        entropy: float = 0.1
        momentum: float = 0.9
        through: bool = False
        partial: bool = True

        def __post_init__(self) -> None:
            expect(self, weight=NOT_NEGATIVE, entropy=NOT_NEGATIVE, momentum=SHARE)
            if not self.partial:
                raise UsageError(
                    "--set partial=false: swmmd weighs classes by how much the target holds of them, always; "
                    "dan is its like for a target with all classes"
                )

    needs = Needs(source=True)
    partial = True
    average: Tensor

    def __init__(self, task: Task, knobs: Any = None) -> None:
        super().__init__(task, knobs)
        self.register_buffer("average", torch.full((task.classes,), 1 / task.classes))

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Both batches with features (N, D) and logits (N, K), the source with labels."""
        assert source is not None
        assert source.labels is not None
        assert target is not None
        momentum, knobs = self.knobs.momentum, self.knobs
        mean = target.logits.float().softmax(1).mean(0)
        soft = momentum * self.average + (1 - momentum) * mean
        self.average = soft.detach()
        weight = (soft if knobs.through else soft.detach()) * self.task.classes
        chosen = weight[source.labels]
        kernel = gaussian_kernels(torch.cat([source.features, target.features]).float())
        mmd = squared_mmd(kernel, chosen, unbiased=False)
        fixed = chosen.detach()
        fixed = fixed / fixed.mean().clamp_min(torch.finfo(fixed.dtype).eps)
        return {
            "source": labelled(source, weight=fixed),
            "swmmd": knobs.weight * strength_at(step) * mmd,
            "entropy": knobs.entropy * mean_entropy(target.logits.float()),
        }
