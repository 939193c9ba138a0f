"""Activation statistics: a channel that the target images hardly light up is not needed for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgeprune.errors import DataError
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.scores import relative
from edgeprune.prune.scores.gates import gated
from edgeprune.prune.scores.group import gather, reduced, rows
from edgeprune.prune.scores.magnitude import energy


@dataclass(frozen=True)
class Activation:
    """Energy of what a channel gives its readers: E[x_c^2] times the squared norm of the weights that read
    it.

    Source: |W| times the norm of its input, Wanda (Sun et al., ICLR 2024, arXiv 2306.11695, eq. 1), squared
    and summed over a channel's weights (ours). weights=False leaves the weights out; power=1 has E|x_c| and
    the norm of the weights, not squared. A coupling that cannot be watched is ranked by magnitude. batches:
    images (B,3,H,W), or tuples of arguments; read once a call.
    """

    looks: ClassVar[str] = "target"
    batches: Iterable[Any]
    weights: bool = True
    normalise: bool = True
    power: int = 2

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep."""
        total: dict[str, Tensor] = {}
        count = 0
        with gated(module, couplings, self.power) as gates, torch.no_grad():
            for batch in self.batches:
                args = batch if isinstance(batch, tuple) else (batch,)
                gates.start(args[0])
                module(*args)
                count += len(args[0])
                for root, seen in gates.seen.items():
                    total[root] = total.get(root, 0.0) + seen.double().sum(0).cpu()
        if not count:
            raise DataError("activation needs images to look at and received none; give --target DIR")
        out = {}
        for coupling in couplings:
            score = total.get(coupling.root)
            if score is None:
                score = energy(module, coupling)
            elif self.weights:
                reads = [m for m in coupling.members if m.axis == "in"]
                norm = reduced((gather(rows(module, m).square().sum(1), m) for m in reads), "sum")
                score = score * norm.pow(self.power / 2) if norm is not None else score
            out[coupling.root] = score
        return relative(out) if self.normalise else out
