"""Source-free adaptation: sure and diverse predictions, and pseudo-labels from class centroids; classifier frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.objectives.prior import plentiful
from edgeprune.objectives.ranges import NOT_NEGATIVE, expect
from edgeprune.waist import Batch, Needs, Objective, Step, Task


class SHOT(Objective):
    """mean_i H(p_i) - H(mean p) + beta CE(g(x_i), pseudo-label_i).

    Liang et al., Do We Really Need to Access the Source Data?, ICML 2020, arXiv 2002.08546, eq. 4 to 8. The first step
    of re-estimating batch-norm on the target is ours. `partial`: the target has fewer classes (their section 4.5);
    classes of at most `rare` images get no label, unless all are so. Ours: images are counted by the label prior, not
    by the largest answer, as many of these only look like a class that is not there; and eq. 6 takes such classes out
    of the softmax, too.
    """

    @dataclass(frozen=True)
    class Knobs:
        """beta: weight of the pseudo-labels. partial: no diversity term, rare classes get no centroid. rare: images of
        a class, by the label prior, that are too few for one.
        """

        beta: float = 0.3
        partial: bool = False
        rare: int = 10

        def __post_init__(self) -> None:
            expect(self, beta=NOT_NEGATIVE, rare=NOT_NEGATIVE)

    needs = Needs(refresh=True, freeze_classifier=True, statistics=True)
    pseudo: Tensor

    def __init__(self, task: Task, knobs: Any = None) -> None:
        super().__init__(task, knobs)
        self.register_buffer("pseudo", torch.empty(0, dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "pseudo" in state_dict:  # its length is that of the target
            self.pseudo = state_dict[prefix + "pseudo"].to(self.pseudo.device, copy=True)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def refresh(self, features: Tensor, logits: Tensor) -> None:
        """Pseudo-labels of the whole target from features (M, D) and logits (M, K)."""
        there = plentiful(logits, self.knobs.rare) if self.knobs.partial else None
        self.pseudo = centroid_labels(features, logits, there)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`target` with logits (N, K) and the index of each image."""
        assert target is not None
        logits = target.logits.float()
        terms = {"entropy": mean_entropy(logits)}
        if not self.knobs.partial:
            terms["diversity"] = -marginal_entropy(logits)
        if self.knobs.beta:
            terms["pseudo"] = self.knobs.beta * F.cross_entropy(logits, self.pseudo[target.index])
        return terms


def mean_entropy(logits: Tensor) -> Tensor:
    """mean_i H(softmax(z_i)) in nats, a scalar, of logits (N, K); eq. 4."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def marginal_entropy(logits: Tensor) -> Tensor:
    """H(mean_i softmax(z_i)) in nats, a scalar, of logits (N, K); eq. 4."""
    mean = logits.softmax(1).mean(0)
    return -(mean * mean.clamp_min(1e-12).log()).sum()


@torch.no_grad()
def centroid_labels(features: Tensor, logits: Tensor, there: Tensor | None = None) -> Tensor:
    """Pseudo-labels (M,): soft centroids of (f, 1) / ||(f, 1)||, nearest by cosine, and once more with hard ones.

    features (M, D), logits (M, K); eq. 6 and 7 and the authors' code. Classes that are not `there` (K,), or have the
    largest answer for no image, get no label.
    """
    logits = logits if there is None else logits.masked_fill(~there, -torch.inf)
    p = logits.float().softmax(1)
    ones = torch.ones(len(features), 1, device=features.device)
    f = F.normalize(torch.cat([features.float(), ones], 1), dim=1)
    allowed = torch.bincount(p.argmax(1), minlength=p.shape[1]) > 0
    labels = p.argmax(1)
    for affinity in (p, None):
        weight = affinity if affinity is not None else F.one_hot(labels, p.shape[1]).float()
        centroids = weight.T @ f / weight.sum(0).clamp_min(1e-8)[:, None]
        present = allowed & (weight.sum(0) > 0)
        similarity = f @ F.normalize(centroids, dim=1).T
        labels = similarity.masked_fill(~present, -2.0).argmax(1)
    return labels
