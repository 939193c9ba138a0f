"""Consistency: what the network is sure of on a weak view of a target image, it should also say of a strong one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.objectives.ranges import NOT_NEGATIVE, SHARE, expect
from edgeprune.objectives.source import PartialKnobs, WithSource
from edgeprune.waist import Batch, Needs, Step


class FixMatch(WithSource):
    """CE on the source + weight * mean_i 1[max p(weak_i) >= c] CE(g(strong_i), argmax p(weak_i)).

    Sohn et al., FixMatch, NeurIPS 2020, arXiv 2001.07685, eq. 4, with the target as the unlabelled set.
    """

    @dataclass(frozen=True)
    class Knobs(PartialKnobs):
        """threshold: the confidence c in 0..1. weight: of the consistency term."""

        threshold: float = 0.9
        weight: float = 1.0

        def __post_init__(self) -> None:
            expect(self, threshold=SHARE, weight=NOT_NEGATIVE)

    needs = Needs(source=True, views=("weak", "strong"))

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`source` with labels; `target` with the views "weak" and "strong"."""
        assert target is not None
        weak, strong = target.views["weak"][1].float(), target.views["strong"][1].float()
        consistency = self.knobs.weight * pseudo_label_loss(weak, strong, self.knobs.threshold)
        return {"source": self.labelled(source), "consistency": consistency}


def pseudo_label_loss(weak: Tensor, strong: Tensor, threshold: float) -> Tensor:
    """Scalar loss of logits (N, K) of both views; no gradient flows through the weak one."""
    with torch.no_grad():
        confidence, label = weak.softmax(1).max(1)
        sure = (confidence >= threshold).to(strong.dtype)
    return (sure * F.cross_entropy(strong, label, reduction="none")).mean()
