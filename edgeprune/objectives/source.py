"""Cross entropy on labelled source images: what the cloud did, and the part that every with-source objective shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.objectives.prior import label_prior
from edgeprune.objectives.ranges import SHARE, expect
from edgeprune.waist import Batch, Needs, Objective, Step, Task

NEGLIGIBLE = 1e-6  # a weight that is none
HALFWAY = 0.5  # from the class weights before to those of a new look at the target


@dataclass(frozen=True)
class PartialKnobs:
    """partial: the target has fewer classes than the source; classes count as the target seems to hold of them."""

    partial: bool = False


class WithSource(Objective):
    """What objectives that learn from labelled source images share: cross entropy, weighted by class when partial.

    The weights are PADA's (Cao et al., Partial Adversarial Domain Adaptation, ECCV 2018, arXiv 1808.04205, eq. 4 and
    5): gamma_c = mean_j softmax(z_j / T)_c over the target, with T = 0.1 as in TLLib, 1 on the average of classes, and
    refreshed before each pass over the target. Ours: each refresh but the first goes half of the way, since a class
    that is hardly predicted for a while may be there; weights have mean 1 in each batch, in the domain terms too,
    where PADA divides by the largest; and an objective that `compares` domains takes the label prior for gamma, as
    both sides are to hold the same shares of classes, and the mean of answers counts what only looks like one. Others
    keep that: a class that is there and badly known may have no prior, and is forgotten where it is not taught. The
    former run that risk, too, as in PADA one gamma weighs both terms. `gamma` (K,) is a buffer.
    """

    Knobs: type = PartialKnobs
    needs = Needs(source=True)
    compares = False
    gamma: Tensor

    def __init__(self, task: Task, knobs: Any = None) -> None:
        super().__init__(task, knobs)
        self.register_buffer("gamma", torch.ones(task.classes))
        if self.knobs.partial:
            self.needs = replace(self.needs, refresh=True)

    def refresh(self, features: Tensor, logits: Tensor) -> None:
        """Class weights from logits (M, K) of the whole target."""
        if self.knobs.partial:
            weights = label_prior(logits) * logits.shape[1] if self.compares else class_weights(logits)
            now, first = weights.to(self.gamma), bool((self.gamma == 1).all())
            self.gamma = F.threshold(now if first else self.gamma.lerp(now, HALFWAY), NEGLIGIBLE, 0.0)

    def weights(self, source: Batch) -> Tensor | None:
        """Weight (N,) of each source image, mean 1 over the batch; None when every image counts the same."""
        return of_rows(self.gamma if self.knobs.partial else None, source.labels)

    def labelled(self, source: Batch | None) -> Tensor:
        """Cross entropy of a labelled batch, a scalar: sum_i w_i CE_i / sum_i w_i when partial."""
        weight = self.weights(source) if source is not None else None
        return labelled(source, weight=weight)


class Source(WithSource):
    """mean_i CE(g(x_i), y_i) with label smoothing; the target is looked at for `partial` alone."""

    @dataclass(frozen=True)
    class Knobs:
        """smoothing: of the labels, in 0..1 (SHOT trains its source model with 0.1). partial: the target has
        fewer classes, and source images count by how much it seems to hold of theirs.
        """

        smoothing: float = 0.1
        partial: bool = False

        def __post_init__(self) -> None:
            expect(self, smoothing=SHARE)

    needs = Needs(source=True, views=())

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`source` with logits (N, K) and labels (N,)."""
        weight = self.weights(source) if source is not None else None
        return {"source": labelled(source, self.knobs.smoothing, weight)}


def labelled(source: Batch | None, smoothing: float = 0.0, weight: Tensor | None = None) -> Tensor:
    """Cross entropy of a labelled batch, a scalar, with weights (N,) of mean 1; ValueError when there is no batch."""
    if source is None or source.labels is None:
        raise ValueError("a labelled source batch is expected; the objective's needs must say source=True")
    logits = source.logits.float()
    if weight is None:
        return F.cross_entropy(logits, source.labels, label_smoothing=smoothing)
    return (
        weight * F.cross_entropy(logits, source.labels, label_smoothing=smoothing, reduction="none")
    ).mean()


def of_rows(gamma: Tensor | None, labels: Tensor | None) -> Tensor | None:
    """Class weights (K,) as those of rows by their labels, (N,) with mean 1; None where there are none of either."""
    if gamma is None or labels is None:
        return None
    weight = gamma.to(labels.device)[labels]
    return weight / weight.mean().clamp_min(torch.finfo(weight.dtype).eps)


@torch.no_grad()
def class_weights(logits: Tensor, temperature: float = 0.1) -> Tensor:
    """PADA's class weights (K,), mean 1, from target logits (M, K)."""
    gamma = (logits.float() / temperature).softmax(1).mean(0)
    return gamma / gamma.mean()
