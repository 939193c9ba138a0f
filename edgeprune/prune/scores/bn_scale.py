"""Norm gains: a channel whose batch-norm gain is small is nearly constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgeprune.errors import ModelError
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.scores.group import Reduce, gains, gather, reduced, rows
from edgeprune.prune.scores.magnitude import Magnitude


@dataclass(frozen=True)
class BNScale:
    """Absolute gain of the coupling's norms, one threshold for all (Liu et al., Network Slimming, ICCV 2017,
    eq. 1).

    A coupling without a norm is ranked by magnitude, scaled to the network's mean gain (ours).
    ModelError when no coupling has a norm at all.
    """

    looks: ClassVar[str] = ""
    reduce: Reduce = "mean"

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep."""
        found = {}
        for coupling in couplings:
            parts = [gather(rows(module, m).abs().sum(1), m) for m in gains(module, coupling)]
            gain = reduced(parts, self.reduce)
            if gain is not None:
                found[coupling.root] = gain
        if not found:
            raise ModelError(
                "bn-scale needs norms with gains and this network has none; use --score magnitude"
            )
        typical = torch.cat(list(found.values())).mean()
        rest = Couplings(tuple(c for c in couplings if c.root not in found))
        fallback = {root: score * typical for root, score in Magnitude()(module, rest).items()}
        return {c.root: found.get(c.root, fallback.get(c.root)) for c in couplings}  # type: ignore[misc]
