"""Random: the floor that every other criterion has to beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgeprune.prune.coupling import Couplings
from edgeprune.prune.scores import relative


@dataclass(frozen=True)
class Random:
    """Uniform from 0, divided by the coupling's mean: a function of the seed and the coupling's root only."""

    looks: ClassVar[str] = ""
    seed: int = 0

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut."""
        out = {}
        for coupling in couplings:
            digest = hashlib.sha256(f"{self.seed}/{coupling.root}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            out[coupling.root] = torch.rand(coupling.width, generator=generator, dtype=torch.double)
        return relative(out)
