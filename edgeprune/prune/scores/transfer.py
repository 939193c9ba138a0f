"""Transfer channel evaluation: what a channel is worth to the source's classification and to the domains' likeness.

TCP (Yu et al., Accelerating Deep Unsupervised Domain Adaptation with Transfer Channel Pruning, IJCNN 2019, arXiv
1904.02654, eq. 11): G(a) = | dL_cls/da^s a^s + beta dL_mmd/da^t a^t |, summed before the absolute value. Summed over
images and positions, a dL/da is the derivative of L by a gate on the channel, so that is what is read here: to first
order, by how much the loss changes when the channel goes, in nats, the same unit in every layer. (The paper writes
the mean of a, which would weigh layers by the size of their maps.) The authors' code instead takes the smaller of the
two domains' products, each divided by its L2 norm over the layer (`combine="min"`), and looks at the last batch alone;
here batches are averaged. Ours: couplings in place of layers, and batch-norm as in training: by each domain's own
batch, or frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune import inference
from edgeprune.data.batches import Batches
from edgeprune.data.pixels import Pixels
from edgeprune.errors import DataError
from edgeprune.images import Preprocess
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.scores.gates import gated
from edgeprune.prune.scores.taylor import slopes


@dataclass(frozen=True)
class Pass:
    """One domain's batch after a forward pass: images (N,3,H,W), features (N,D), logits (N,K), labels (N,) or None."""

    images: Tensor
    features: Tensor
    logits: Tensor
    labels: Tensor | None = None


# (source, target) -> the scalar that source activations answer for, and the one that target activations do.
Losses = Callable[[Pass, Pass], tuple[Tensor, Tensor]]
Triple = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Transfer:
    """How much two losses, one a domain, change to first order when a channel goes.

    batches: (source images, labels, target images), read once a call. classifier: dotted name of the layer that
    features enter. combine: "sum" | s + t | of each batch (the paper); "min" or "max" of the domains' own | s |, | t |
    after division by their L2 norm over the coupling (the code; and its opposite). per_layer: divide the sum likewise.
    frozen: batch-norm by its running statistics.
    """

    batches: Iterable[Triple]
    losses: Losses
    classifier: str
    combine: Literal["sum", "min", "max"] = "sum"
    per_layer: bool = False
    frozen: bool = False

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep; DataError when there was no batch."""
        zero = {c.root: torch.zeros(c.width, dtype=torch.double) for c in couplings}
        both, alone, other = dict(zero), dict(zero), dict(zero)
        count = 0
        for batch in self.batches:
            s, t = self._products(module, couplings, batch)
            count += 1
            for root in zero:
                both[root] = both[root] + (s[root] + t[root]).abs()
                alone[root] = alone[root] + s[root].abs()
                other[root] = other[root] + t[root].abs()
        if not count:
            raise DataError("a transfer score needs batches of both domains and received none")
        if self.combine == "sum":
            return {r: unit(v / count) if self.per_layer else v / count for r, v in both.items()}
        pick = torch.minimum if self.combine == "min" else torch.maximum
        return {r: pick(unit(alone[r]), unit(other[r])) for r in zero}

    def _products(self, module: nn.Module, couplings: Couplings, batch: Triple) -> list[dict[str, Tensor]]:
        """Of the source and of the target: root -> (C,), the sum over images and positions of a dL/da."""
        images, labels, unlabelled = (t.to(next(module.parameters()).device) for t in batch)
        with (
            gated(module, couplings) as gates,
            inference.tracking(module, False),
            inference.Taps(module, self.classifier) as taps,
            torch.enable_grad(),
        ):
            for norm in (m for m in module.modules() if isinstance(m, _BatchNorm)):
                norm.train(not self.frozen)
            passes, kept = [], []
            for x, y in ((images, labels), (unlabelled, None)):
                gates.start(x)
                logits = module(x)
                assert taps.features is not None
                passes.append(Pass(x, taps.features, logits, y))
                kept.append(replace(gates))
            scalars = self.losses(passes[0], passes[1])
            found = [slopes(module, couplings, g, v) for g, v in zip(kept, scalars, strict=True)]
        silent = {c.root: torch.zeros(c.width, dtype=torch.double) for c in couplings}
        return [{**silent, **{root: g.sum(0) for root, g in one.items()}} for one in found]


def additive(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The squares: the same order, in a form that a plan can add up, as `--rank global` does.

    First-order changes of many channels have either sign, so together they grow as the root of the sum of squares.
    Sums of absolute values count what cancels, and favour wide layers of small ones over the streams between blocks.
    """
    return {root: score.square() for root, score in scores.items()}


def unit(score: Tensor) -> Tensor:
    """(C,) divided by its L2 norm; all-zero scores stay zero."""
    length: Tensor = score.norm()
    return score / length.clamp_min(torch.finfo(score.dtype).tiny)


@dataclass(frozen=True)
class Pairs:
    """`count` shuffled batches of both domains at the evaluation geometry, the same at every reading.

    Up to `batch` images of each domain in one.
    """

    source: Pixels
    target: Pixels
    pre: Preprocess
    count: int
    batch: int = 32
    seed: int = 0

    def __iter__(self) -> Iterator[Triple]:
        sets = [
            Batches(pixels, self.pre, min(self.batch, len(pixels)), ("plain",), self.seed + place)
            for place, pixels in enumerate((self.target, self.source))
        ]
        try:
            for number in range(self.count):
                target, source = (one.at(number) for one in sets)
                assert source.labels is not None
                yield source.views["plain"], source.labels, target.views["plain"]
        finally:
            for one in sets:
                one.close()
