"""Batch-norm statistics of the target, and nothing else: the floor that every other objective must beat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from edgeprune.objectives.ranges import SHARE, expect
from edgeprune.waist import Batch, Needs, Objective, Step, Task


class AdaBN(Objective):
    """Replace the running statistics by the target's; no parameter changes: mu = (1 - a) mu_s + a mu_t, the same for
    the variance.

    Li et al., Revisiting Batch Normalization for Practical Domain Adaptation, 2016, arXiv 1603.04779, where a = 1. For
    few images a = n / (n + 16), after Schneider et al., NeurIPS 2020, arXiv 2006.16971, eq. 1; how many are few is
    ours, see validate.share_of.
    """

    @dataclass(frozen=True)
    class Knobs:
        """blend: a, the share of the target's statistics, 0..1; left open or 0: 1, and less for few images."""

        blend: float | None = None

        def __post_init__(self) -> None:
            expect(self, blend=SHARE)

    needs = Needs(views=("plain",), statistics=True, train=False, blend=0.0)

    def __init__(self, task: Task, knobs: Any = None) -> None:
        super().__init__(task, knobs)
        self.needs = replace(self.needs, blend=self.knobs.blend or 0.0)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Nothing to minimise; never called."""
        return {}
