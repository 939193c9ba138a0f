"""Distillation on unlabelled images: the student says what the frozen teacher says; how a cut network recovers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from edgeprune.waist import Batch, Needs, Objective, Step


class Distill(Objective):
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over images.

    Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
    """

    @dataclass(frozen=True)
    class Knobs:
        """temperature: T."""

        temperature: float = 2.0

    needs = Needs(teacher=True)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`target` with logits (N, K) and the teacher's (N, K)."""
        assert target is not None
        assert target.teacher is not None
        return {"distill": softened_kl(target.teacher.float(), target.logits.float(), self.knobs.temperature)}


def softened_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over N of KL(teacher || student) in nats, of logits (N, K)."""
    log_q = (student / temperature).log_softmax(1)
    log_p = (teacher / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
