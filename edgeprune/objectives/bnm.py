"""Batch nuclear-norm maximisation: target predictions should be sure and, as a batch, diverse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.objectives.ranges import NOT_NEGATIVE, expect
from edgeprune.objectives.source import PartialKnobs, WithSource
from edgeprune.waist import Batch, Step


class BNM(WithSource):
    """CE on the source - weight * ||P||_* / B, P = softmax of the target's logits (B, K).

    Cui et al., Towards Discriminability and Diversity: Batch Nuclear-norm Maximization, CVPR 2020, arXiv 2003.12237,
    eq. 10 and 11. The batch should hold at least K images. `partial` weights the source alone: diversity stays.
    """

    @dataclass(frozen=True)
    class Knobs(PartialKnobs):
        """weight: lambda of eq. 11."""

        weight: float = 1.0

        def __post_init__(self) -> None:
            expect(self, weight=NOT_NEGATIVE)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`source` with labels, `target` with logits (N, K)."""
        assert target is not None
        norm = nuclear_norm(target.logits.float())
        return {"source": self.labelled(source), "bnm": -self.knobs.weight * norm}


def nuclear_norm(logits: Tensor) -> Tensor:
    """||softmax(Z)||_* / B, a scalar, of logits (B, K); no number where one of them is none."""
    if not bool(
        logits.isfinite().all()
    ):  # which has no singular values; the alarm is to see it, not a traceback
        return logits.sum() * torch.nan
    norm: Tensor = torch.linalg.matrix_norm(logits.softmax(1), "nuc")
    return norm / len(logits)
