"""Labels that flow between similar images: what a network says of an image, after its neighbours were asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_ROUNDS, _LEFT = 150, 1e-3  # at least so many; then alpha^rounds of the error is left, at most a thousandth
FEW = 10  # images of each class that is predicted; among fewer an image's neighbours are of other classes anyway


@torch.no_grad()
def propagate(
    features: Sequence[Tensor], p: Tensor, *, near: int = 10, alpha: float = 0.95, level: bool = True
) -> Tensor:
    """Class probabilities (M, K) on the CPU: (1 - alpha) (I - alpha S)^-1 p, rows summing to 1.

    features: of the same M images by one network or several, each (M, D_i). p (M, K): softmax outputs.
    S = D^-1/2 (W + W^T) D^-1/2 over the `near` nearest neighbours, W_ij = max(0, cos_ij)^3 (Zhou et al., Learning with
    Local and Global Consistency, NeurIPS 2003, eq. 4; the graph is that of Iscen et al., Label Propagation for Deep
    Semi-supervised Learning, CVPR 2019, arXiv 1904.04717, eq. 9). Ours: each network's features are normalised, centred
    and normalised again, then laid side by side, so that no network outweighs another; and `level` scales the mass of
    each class halfway (in logarithms) towards equal classes, because large classes swallow small ones on such a graph.
    p itself comes back where there is no graph: of one image, or of features that are not finite.
    """
    if len(p) < 2 or not all(bool(f.isfinite().all()) for f in (*features, p)):
        return p.detach().cpu().float()
    flow = _graph(torch.cat([_centred(f) for f in features], 1), min(near, len(p) - 1))
    start = p.detach().cpu().double().numpy()
    q = start
    for _ in range(max(_ROUNDS, math.ceil(math.log(_LEFT) / math.log(alpha))) if alpha > 0 else 1):
        q = alpha * (flow @ q) + (1 - alpha) * start
    found = torch.from_numpy(q).float()
    found /= found.sum(1, keepdim=True).clamp_min(1e-12)
    if level:
        found *= p.detach().cpu().float().sum(0).sqrt() / found.sum(0).clamp_min(1e-12)
    return found / found.sum(1, keepdim=True).clamp_min(1e-12)


def settled(features: Tensor, logits: Tensor) -> float:
    """Cohen's kappa, up to 1, of the answers (M, K) with those of the neighbours in features (M, D).

    Of what flowed, and of the nearest alone, the smaller: with few images a class an image's own answer outweighs what
    flows to it, and where all is called one of two classes the nearest agree. Near 1 where neighbours are called alike,
    so that the shift is small; 0 when everything is called one class; 1 where there are fewer than `FEW` images a
    predicted class, which says nothing, and then little should change. Ours.
    """
    from sklearn.metrics import cohen_kappa_score

    p = logits.detach().cpu().float().softmax(1)
    own = p.argmax(1)
    if len(p) < 2 or not torch.isfinite(features).all():
        return 0.0
    near = torch.from_numpy(_graph(_centred(features), min(10, len(p) - 1)) @ p.double().numpy()).argmax(1)
    flowed = propagate([features], p, level=False).argmax(1)
    if len(torch.unique(torch.cat([own, flowed]))) < 2:
        return 0.0
    if len(p) < FEW * len(torch.unique(own)):
        return 1.0
    return float(min(cohen_kappa_score(own.numpy(), other.numpy()) for other in (flowed, near)))


def surest(p: Tensor, share: float) -> Tensor:
    """Labels (M,) int64 of the `share` of each predicted class that p (M, K) is surest of; -1 for the others."""
    value, label = p.max(1)
    kept = torch.full_like(label, -1)
    for k in range(p.shape[1]):
        rows = (label == k).nonzero().flatten()
        best = rows[value[rows].argsort(descending=True)[: max(1, round(share * len(rows)))]]
        kept[best] = k
    return kept


def _centred(features: Tensor) -> Tensor:
    unit = F.normalize(features.detach().cpu().float().flatten(1), dim=1)
    return F.normalize(unit - unit.mean(0), dim=1)


def _graph(features: Tensor, near: int):  # type: ignore[no-untyped-def]
    """The normalised affinities S, (M, M) sparse."""
    from scipy import sparse
    from sklearn.neighbors import NearestNeighbors

    rows = features.numpy()
    found = NearestNeighbors(n_neighbors=max(1, near), metric="cosine", algorithm="brute").fit(rows)
    half = found.kneighbors_graph(mode="distance")  # without arguments a row is not its own neighbour
    half.data = np.clip(1 - half.data, 0, None) ** 3
    both = half + half.T
    degree = np.asarray(both.sum(1)).ravel()
    scale = sparse.diags(1 / np.sqrt(np.clip(degree, 1e-12, None)))
    return (scale @ both @ scale).tocsr()
