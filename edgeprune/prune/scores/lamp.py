"""LAMP: magnitude relative to what would still be there if all smaller ones were gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgeprune.prune.coupling import Couplings
from edgeprune.prune.scores.group import Reduce
from edgeprune.prune.scores.magnitude import energy


@dataclass(frozen=True)
class LAMP:
    """score(u) = W[u]^2 / sum of W[v]^2 over all v with W[v]^2 >= W[u]^2 (Lee et al., ICLR 2021, arXiv
    2010.07611, eq. 3).

    The paper ranks single weights of a layer; here W[u]^2 is a channel's energy over its coupling's members
    (ours). The largest of each coupling scores 1, so a global threshold never empties a coupling. Ties share
    a score.
    """

    looks: ClassVar[str] = ""
    reduce: Reduce = "mean"

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep."""
        return {c.root: lamp(energy(module, c, self.reduce)) for c in couplings}


def lamp(energies: Tensor) -> Tensor:
    """(C,) squared magnitudes -> (C,) LAMP scores in 0..1."""
    ordered, order = energies.sort()
    tail = ordered.flip(0).cumsum(0).flip(0)
    first = torch.searchsorted(ordered, ordered)  # ties: the sum that holds all of them
    score = torch.where(tail[first] > 0, ordered / tail[first], ordered)
    return torch.empty_like(energies).index_copy_(0, order, score)
