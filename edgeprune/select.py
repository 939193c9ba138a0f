"""Label-free validators: which checkpoint is best, and has training collapsed? Larger is better for every score.

P is the (N, K) softmax of the logits, H the entropy in nats. Formulas as published; the rule that combines them is
ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLLAPSE = 0.6  # of the entropy that the class histogram had before training
CHOOSER = "information"


def validators(features: Tensor, logits: Tensor) -> dict[str, float]:
    """All scores of features (N, D) and logits (N, K).

    information: H(mean P) - mean H(P) (Krause et al. 2010). entropy: -mean H(P). nuclear: ||P||_* / sqrt(N min(N, K)),
    in 0..1 (Deng et al. 2023). snd: soft neighbourhood density at temperature 0.05 on P (Saito et al., ICCV 2021,
    arXiv 2108.10860). histogram: entropy of the predicted classes, of log K; the collapse alarm reads it. Logits that
    are not finite get the worst of each.
    """
    n, k = logits.shape
    if not torch.isfinite(logits).all():
        return {"information": 0.0, "entropy": -math.log(k), "nuclear": 0.0, "snd": 0.0, "histogram": 0.0}
    p = logits.double().softmax(1)
    conditional = -(p * p.clamp_min(1e-12).log()).sum(1).mean()
    mean = p.mean(0)
    marginal = -(mean * mean.clamp_min(1e-12).log()).sum()
    histogram = torch.bincount(p.argmax(1), minlength=k).double() / n
    spread = -(histogram * histogram.clamp_min(1e-12).log()).sum() / math.log(max(2, k))
    return {
        "information": float(marginal - conditional),
        "entropy": float(-conditional),
        "nuclear": float(torch.linalg.matrix_norm(p, "nuc") / math.sqrt(n * min(n, k))),
        "snd": soft_neighbourhood_density(p),
        "histogram": float(spread),
    }


def soft_neighbourhood_density(p: Tensor, temperature: float = 0.05, most: int = 1024) -> float:
    """Mean entropy of the softmax over similarities to all other images (Saito et al. 2021, eq. 1 to 3).

    p (N, K); at most `most` rows, evenly spaced, are taken, since the cost is N squared.
    """
    rows = p[torch.linspace(0, len(p) - 1, min(most, len(p))).round().long()]
    if len(rows) < 3:
        return 0.0
    v = torch.nn.functional.normalize(rows, dim=1)
    similarity = (v @ v.T / temperature).fill_diagonal_(-math.inf)
    q = similarity.softmax(1)
    return float(-(q * q.clamp_min(1e-12).log()).sum(1).mean())


@dataclass(frozen=True)
class Choice:
    """Which of the validated steps is kept (its place in the list), and whether the later ones had collapsed."""

    place: int
    collapsed: bool


def choose(curves: Sequence[Mapping[str, float]], chooser: str = CHOOSER) -> Choice:
    """Choose among validated checkpoints, oldest first; a tie goes to the later.

    A checkpoint whose class histogram lost more than 40% of the entropy that the first had counts as collapsed and is
    not chosen, unless all are.
    """
    floor = COLLAPSE * curves[0]["histogram"]
    alive = [i for i, c in enumerate(curves) if c["histogram"] >= floor] or list(range(len(curves)))
    place = max(alive, key=lambda i: (curves[i][chooser], i))
    return Choice(place, curves[-1]["histogram"] < floor)
