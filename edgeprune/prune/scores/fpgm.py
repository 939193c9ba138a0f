"""FPGM: a filter near the geometric median of its layer can be said by the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from edgeprune.prune.coupling import Couplings, Member
from edgeprune.prune.scores import relative
from edgeprune.prune.scores.group import Reduce, gather, reduced, rows, weights
from edgeprune.prune.scores.magnitude import energy


@dataclass(frozen=True)
class FPGM:
    """Sum of Euclidean distances from a filter to all filters of its layer (He et al., CVPR 2019, arXiv
    1811.00250, eq. 4).

    Over the weights that make the channel; a channel with several filters has the sum of theirs. A coupling
    that no weight makes is ranked by magnitude.
    """

    looks: ClassVar[str] = ""
    reduce: Reduce = "mean"
    normalise: bool = True

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep."""
        out = {}
        for coupling in couplings:
            made = [m for m in weights(module, coupling) if m.axis == "out"]
            score = reduced((_distances(module, m) for m in made), self.reduce)
            out[coupling.root] = energy(module, coupling) if score is None else score
        return relative(out) if self.normalise else out


def _distances(module: nn.Module, member: Member) -> Tensor:
    filters = rows(module, member)
    square = filters.square().sum(1)
    apart = (square[:, None] + square[None] - 2 * filters @ filters.T).clamp_min_(0)  # float64: exact enough
    return gather(apart.fill_diagonal_(0).sqrt().sum(1), member)
