"""Minimum class confusion: predictions on the target should not be torn between classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.objectives.ranges import NOT_NEGATIVE, POSITIVE, SHARE, expect
from edgeprune.objectives.source import PartialKnobs, WithSource
from edgeprune.waist import Batch, Step


class MCC(WithSource):
    """CE on the source + mu * class confusion on the target.

    Jin et al., Minimum Class Confusion for Versatile Domain Adaptation, ECCV 2020, arXiv 1912.03699. The temperature
    is the paper's; the ramp of mu over the first tenth of the steps is ours.
    """

    @dataclass(frozen=True)
    class Knobs(PartialKnobs):
        """temperature: T of eq. 1, of softmax. weight: mu of eq. 9. ramp: share of the steps until mu is reached."""

        temperature: float = 2.5
        weight: float = 1.0
        ramp: float = 0.1

        def __post_init__(self) -> None:
            expect(self, temperature=POSITIVE, weight=NOT_NEGATIVE, ramp=SHARE)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`source` with labels, `target` with logits (N, K)."""
        assert target is not None
        ramp = min(1.0, step.progress / self.knobs.ramp) if self.knobs.ramp else 1.0
        counted = self.gamma if self.knobs.partial else None
        confusion = class_confusion(target.logits.float(), self.knobs.temperature, counted)
        return {"source": self.labelled(source), "mcc": self.knobs.weight * ramp * confusion}


def class_confusion(logits: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
    """The loss of eq. 6, a scalar, for logits (B, K).

    counted (K,): how much each class counts in the mean, the same where None. With it (ours) a class that the target
    lacks gains nothing from images that are surely of it.

    Y = softmax(Z / T); W_ii = B (1 + exp(-H_i)) / sum_j (1 + exp(-H_j)), a constant (eq. 4); C = Y' W Y (eq. 5);
    rows of C normalised (eq. 7); the loss is the mean over classes of the off-diagonal sum. C keeps the precision of
    the logits: autocast would round its products to half precision.
    """
    y = (logits / temperature).softmax(1)
    with torch.no_grad():
        entropy = -(y * y.clamp_min(1e-12).log()).sum(1)
        weight = 1 + torch.exp(-entropy)
        weight = len(y) * weight / weight.sum()
    with torch.autocast(logits.device.type, enabled=False):
        confusion = (y * weight[:, None]).T @ y
    tiny = torch.finfo(y.dtype).tiny  # a class that nobody predicts confuses nobody
    confusion = confusion / confusion.sum(1, keepdim=True).clamp_min(tiny)
    if counted is None:
        return (confusion.sum() - confusion.trace()) / y.shape[1]
    return (counted / counted.sum() * (confusion.sum(1) - confusion.diagonal())).sum()
