"""How far the answers move when one coupling alone is cut: which layers a network can spare, on unlabelled
images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import DataError
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import surgery
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Ladder, Rules, ladder

FRACTIONS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Sensitivity:
    """One coupling cut to one width, all others whole.

    cut: share of its channels that went, in 0..1. divergence: mean KL(dense || cut) in nats an image; for
    outputs that are not logits, the mean squared change over the mean square. agreement: share of images with
    the same top answer, None where there is none.
    """

    root: str
    width: int
    kept: int
    cut: float
    divergence: float
    agreement: float | None


def sensitivity(
    module: nn.Module,
    couplings: Couplings,
    scores: Mapping[str, Tensor],
    batches: Iterable[Any],
    fractions: Sequence[float] = FRACTIONS,
    rules: Rules | None = None,
    *,
    tick: Callable[[int], object] = int,
) -> list[Sensitivity]:
    """Cut each coupling alone, on a copy, to the legal widths nearest to the fractions; in the couplings'
    order.

    batches: images (B,3,H,W) or tuples of arguments, kept in memory. tick: called with 1 after each coupling. DataError
    when there are no images.
    """
    rules = rules or Rules(multiple=1, floor=0.0)
    inputs = [b if isinstance(b, tuple) else (b,) for b in batches]
    if not inputs:
        raise DataError("sensitivity needs images to look at and received none; give --target DIR")
    dense = _answers(module, inputs)
    found = []
    for coupling in couplings:
        one = ladder(coupling, scores[coupling.root], rules)
        for width in _widths(one, fractions):
            small = copy.deepcopy(module)
            plan = PruningPlan((Cut(one.root, coupling.width, one.keep(width)),))
            surgery.apply(small, plan, couplings)
            moved, same = _compare(dense, _answers(small, inputs))
            found.append(
                Sensitivity(one.root, coupling.width, width, 1 - width / coupling.width, moved, same)
            )
        tick(1)
    return found


def _widths(one: Ladder, fractions: Sequence[float]) -> list[int]:
    """The distinct legal widths below the full one nearest to cutting each fraction, widest first."""
    full, legal = one.widths[-1], one.widths[:-1]
    if not legal:
        return []
    return sorted({min(legal, key=lambda w: abs(w - (1 - f) * full)) for f in fractions}, reverse=True)


def _answers(module: nn.Module, inputs: Sequence[tuple[Any, ...]]) -> list[list[Tensor]]:
    """The float outputs of each batch, in evaluation mode."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            outs = [torch.utils._pytree.tree_leaves(module(*args)) for args in inputs]
    finally:
        for part, mode in modes:
            part.training = mode
    return [[t.double() for t in out if isinstance(t, Tensor) and t.is_floating_point()] for out in outs]


def _compare(dense: list[list[Tensor]], cut: list[list[Tensor]]) -> tuple[float, float | None]:
    """Divergence and agreement over all batches."""
    if all(len(out) == 1 and out[0].ndim == 2 for out in dense):
        logits = [torch.cat([out[0] for out in side]) for side in (dense, cut)]
        p, q = (x.log_softmax(1) for x in logits)
        same = (p.argmax(1) == q.argmax(1)).double().mean()
        return float((p.exp() * (p - q)).sum(1).mean()), float(same)
    pairs = [(a, b) for x, y in zip(dense, cut, strict=True) for a, b in zip(x, y, strict=True)]
    if any(a.shape != b.shape for a, b in pairs):  # detections: another number of boxes
        return math.inf, None
    size = sum(float(a.square().sum()) for a, _ in pairs)
    return sum(float((a - b).square().sum()) for a, b in pairs) / max(size, 1e-30), None
