"""Label-free validators: which checkpoint is best, and has training collapsed? Larger is better for every score.

P is the (N, K) softmax of the logits, H the entropy in nats. Formulas as published; the rules that combine them are
ours. What needs a network beside features and logits is in edgeprune.validate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.errors import UsageError, nearest

COLLAPSE = 0.6  # of the largest entropy that the class histogram had so far
COLLAPSE_OF_TWO = 0.2  # where there are but two classes: one in 30 images may well be of the rare one
COLLAPSE_PARTIAL = 0.4  # the same where classes are expected to go
FEW = 0.5  # nats, of two classes one with a fifth of the images: no collapse where few of many may be present
DRIFT = 3.0  # standard deviations by which the batch-norm statistics may move
GATE = 0.05  # accuracy on held-out source images that may be lost
CHOOSER = "information"
RANK = "rank"
VOTERS = ("mixval", "information", "ami")
VOTERS_PARTIAL = ("mixval", "entropy", "ami")
CHOOSERS = (CHOOSER, "entropy", "nuclear", "snd", "mixval", "ami", "dev", "source", RANK)
NEED_SOURCE = ("dev", "source")
_DIVERSE = ("information", "nuclear")  # they reward spreading over classes, absent ones too


def chooser_of(name: str, *, partial: bool = False) -> str:
    """The validator that chooses when `name` is asked for; UsageError with the choices when there is none such.

    partial: the target has fewer classes, so what rewards diversity gives way to "rank", the majority of three that do
    not: one of them alone goes up and down with chance.
    """
    if name not in CHOOSERS:
        raise UsageError(f"--select {name}: {nearest(name, CHOOSERS)}")
    return RANK if partial and name in _DIVERSE else name


def validators(features: Tensor, logits: Tensor) -> dict[str, float]:
    """All scores of features (N, D) and logits (N, K).

    information: H(mean P) - mean H(P) (Krause et al. 2010). entropy: -mean H(P). nuclear: ||P||_* / sqrt(N min(N, K)),
    in 0..1 (Deng et al. 2023). snd: soft neighbourhood density at temperature 0.05 on P (Saito et al., ICCV 2021,
    arXiv 2108.10860). ami: see class_ami. histogram: entropy of the predicted classes, of log K; the collapse alarm
    reads it. Logits that are not finite get the worst of each.
    """
    n, k = logits.shape
    if not torch.isfinite(logits).all():
        worst = {"information": 0.0, "entropy": -math.log(k), "nuclear": 0.0, "snd": 0.0, "ami": 0.0}
        return {**worst, "histogram": 0.0}
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
        "ami": class_ami(features, p.argmax(1), k),
        "histogram": float(spread),
    }


def soft_neighbourhood_density(p: Tensor, temperature: float = 0.05, most: int = 1024) -> float:
    """Mean entropy of the softmax over similarities to all other images (Saito et al. 2021, eq. 1 to 3).

    p (N, K); at most `most` rows, evenly spaced, are taken, since the cost is N squared.
    """
    rows = p[torch.linspace(0, len(p) - 1, min(most, len(p))).round().long()]
    if len(rows) < 3:
        return 0.0
    v = F.normalize(rows, dim=1)
    similarity = (v @ v.T / temperature).fill_diagonal_(-math.inf)
    q = similarity.softmax(1)
    return float(-(q * q.clamp_min(1e-12).log()).sum(1).mean())


def class_ami(features: Tensor, predicted: Tensor, classes: int) -> float:
    """Adjusted mutual information, in 0..1, of predicted (N,) and a k-means clustering of features (N, D).

    ClassAMI of Musgrave et al. 2022, arXiv 2208.07360; features on the unit sphere, target images alone and one start
    of k-means++ are ours. 0 with fewer than two images a class, or features that are not finite.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score

    if len(features) < 2 * classes or classes < 2 or not torch.isfinite(features).all():
        return 0.0
    rows = F.normalize(features.float(), dim=1)
    distinct = min(classes, len(torch.unique(rows, dim=0)))
    clusters = KMeans(distinct, n_init=1, max_iter=50, random_state=0).fit_predict(rows.numpy())
    return float(max(0.0, adjusted_mutual_info_score(predicted.numpy(), clusters)))


def deep_embedded_risk(source: Tensor, losses: Tensor, target: Tensor) -> float:
    """Risk on the target, estimated from held-out source images: smaller is better.

    source (M, D), target (N, D): features. losses (M,): of the source images, here 0 or 1.
    mean(w l) + eta (mean w - 1), eta = -Cov(w l, w) / Var(w), w = (M / N) d / (1 - d), d the probability of target (You
    et al., Towards Accurate Model Selection in Deep UDA, ICML 2019, eq. 7 to 9). A logistic discriminator on
    standardised features, fit on one half and asked about the other, in place of a tuned perceptron, is ours.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = torch.cat([source, target]).double().numpy()
    domain = np.r_[np.zeros(len(source)), np.ones(len(target))]
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=200))
    d = cross_val_predict(judge, rows, domain, cv=folds, method="predict_proba")[: len(source), 1]
    weight = len(source) / len(target) * d / np.maximum(1 - d, 1e-6)
    weighted = weight * losses.double().numpy()
    variance = float(np.var(weight))
    eta = -float(np.cov(weighted, weight, ddof=0)[0, 1]) / variance if variance > 1e-12 else 0.0
    return float(weighted.mean() + eta * weight.mean() - eta)


@dataclass(frozen=True)
class Choice:
    """Which of the validated steps is kept (its place in the list), and whether the last had collapsed, and how."""

    place: int
    collapsed: bool
    why: str = field(default="", compare=False)


def choose(
    curves: Sequence[Mapping[str, float]],
    chooser: str = CHOOSER,
    *,
    partial: bool = False,
    held: int = 0,
    classes: int = 10,
) -> Choice:
    """Choose among validated checkpoints, oldest first; a tie goes to the later.

    A checkpoint has collapsed whose class histogram has lost more than 40% (80% where the network has two `classes`) of
    the largest entropy so far, its own included, or whose batch-norm statistics ran away; so has one before training
    that later ones show to be degenerate. When partial: more than 60%, and less than two classes that share the images
    as one to four are left. It is not chosen, nor is one that lost more than `GATE` accuracy, and two standard errors
    of it, on the `held` source images that are held out, unless all are so; 0: what forgets the source on purpose is
    not judged by it. "rank": the best so far gives way to a later one that the majority of MixVal, information
    maximisation (when partial: entropy) and ClassAMI like as well or better; that is a mean rank of two, and needs no
    weights but those of the best.
    """
    chooser = chooser_of(chooser, partial=partial)
    if chooser != RANK and any(chooser not in c for c in curves):
        raise UsageError(
            f"--select {chooser} needs held-out source images, dev at least 20: give --source DIR, and --hold-out"
        )
    # What comes later can only ever be compared with the best so far, whose weights are the ones that are kept.
    best = 0
    for i, now in enumerate(curves):
        floor, kept = _floor(curves[: i + 1], partial, classes), curves[best]
        fit, was_fit = not _collapsed(now, floor), not _collapsed(kept, floor)
        passed, had_passed = (
            fit and not _lost_source(now, curves[0], held),
            was_fit and not _lost_source(kept, curves[0], held),
        )
        if passed != had_passed:
            best = i if passed else best
        elif fit != was_fit:
            best = i if fit else best
        elif _beats(now, kept, chooser, partial):
            best = i
    floor = _floor(curves, partial, classes)
    few = curves[-1]["histogram"] < floor
    why = "onto few classes" if few else "out of its batch-norm statistics"
    return Choice(best, _collapsed(curves[-1], floor), why)


def _collapsed(now: Mapping[str, float], floor: float) -> bool:
    return now["histogram"] < floor or _ran_away(now)


def _ran_away(now: Mapping[str, float]) -> bool:
    return not now.get("drift", 0.0) <= DRIFT


def _floor(curves: Sequence[Mapping[str, float]], partial: bool, classes: int) -> float:
    """The least entropy of a class histogram that is no collapse, as the steps until now have it."""
    first = curves[0]["histogram"]
    largest = max((c["histogram"] for c in curves if not _ran_away(c)), default=first)
    plain = (COLLAPSE if classes > 2 else COLLAPSE_OF_TWO) * largest
    if not partial:
        return plain
    return min(COLLAPSE_PARTIAL * largest, FEW / math.log(max(2, classes)), plain)


def surest(scores: Sequence[Mapping[str, float]], classes: int) -> int:
    """Place of the surest answers of a partial target among those that have not collapsed; a tie goes to the last."""
    floor = _floor(scores, True, classes)
    fit = [i for i, now in enumerate(scores) if not _collapsed(now, floor)]
    return max(fit or range(len(scores)), key=lambda i: (scores[i]["entropy"], i))


def _lost_source(now: Mapping[str, float], first: Mapping[str, float], held: int) -> bool:
    if not held or "source" not in now:
        return False
    share = (first["source"] * held + 1) / (held + 2)  # so that few images, all right, are not sure of it
    return now["source"] < first["source"] - max(GATE, 2 * math.sqrt(share * (1 - share) / held))


def _beats(now: Mapping[str, float], best: Mapping[str, float], chooser: str, partial: bool) -> bool:
    asked = (VOTERS_PARTIAL if partial else VOTERS) if chooser == RANK else (chooser,)
    voters = tuple(v for v in asked if v in now and v in best)
    return sum((now[v] > best[v]) - (now[v] < best[v]) for v in voters) >= 0
