"""Magnitude: a channel with small weights, wherever it is made or read, does little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgeprune.prune.coupling import Coupling, Couplings
from edgeprune.prune.scores import relative
from edgeprune.prune.scores.group import Reduce, gather, reduced, rows


def energy(module: nn.Module, coupling: Coupling, reduce: Reduce = "mean") -> Tensor:
    """(C,) sum of squared weights of each channel in each member, reduced over members."""
    parts = (gather(rows(module, m).square().sum(1), m) for m in coupling.members if m.tensor)
    found = reduced(parts, reduce)
    return torch.zeros(coupling.width, dtype=torch.double) if found is None else found


@dataclass(frozen=True)
class Magnitude:
    """Squared L2 norm of each channel in each member, reduced over members, divided by the coupling's mean.

    Source: the group norm of DepGraph (Fang et al., CVPR 2023, arXiv 2301.12900, eq. 8), without its sparse
    training.
    """

    looks: ClassVar[str] = ""
    reduce: Reduce = "mean"
    normalise: bool = True

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep."""
        found = {c.root: energy(module, c, self.reduce) for c in couplings}
        return relative(found) if self.normalise else found
