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
    eq. 10 and 11. The batch should hold at least K images. When `partial`, columns of P count by PADA's class weights,
    relative to the largest (ours), else absent classes would be asked for.
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
        norm = nuclear_norm(target.logits.float(), self.gamma if self.knobs.partial else None)
        return {"source": self.labelled(source), "bnm": -self.knobs.weight * norm}


def nuclear_norm(logits: Tensor, counted: Tensor | None = None) -> Tensor:
    """||softmax(Z) diag(w)||_* / B, a scalar, of logits (B, K); no number where one of them is none.

    w = counted / max counted, for counted (K,); 1 where None.
    """
    if not bool(
        logits.isfinite().all()
    ):  # which has no singular values; the alarm is to see it, not a traceback
        return logits.sum() * torch.nan
    p = logits.softmax(1)
    p = p if counted is None else p * (counted / counted.max())
    norm: Tensor = torch.linalg.matrix_norm(p, "nuc")
    return norm / len(logits)
