"""Taylor within a layer; between layers, what cutting each of them by half was measured to do.

Ours. Second-order scores hold for small changes. A large cut of an early layer destroys less than they foresee (the
answer can get no worse than wrong), one of a late layer more, by a factor of ten either way. So each coupling alone is
cut by half, by its scores, and these are scaled until the planner's damage at that width (`edgeprune.prune.ladder`) is
the divergence that the images show.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgeprune.prune.coupling import Coupling, Couplings
from edgeprune.prune.ladder import Rules, ladder
from edgeprune.prune.scores.taylor import Taylor
from edgeprune.prune.sensitivity import sensitivity

HALF = (0.5,)
LEAST = 1e-6  # nats: below it nothing was seen to change


@dataclass(frozen=True)
class Measured:
    """Expected divergence in nats an image, as `Taylor`, in units that hold for cuts by half.

    batches: images (B,3,H,W), or tuples of arguments. few: how many of the batches the cuts are measured on.
    """

    looks: ClassVar[str] = "target"
    batches: Iterable[Any]
    few: int = 4

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep; of what has no answers to compare, Taylor's."""
        scores = Taylor(self.batches)(module, couplings)
        some = list(itertools.islice(iter(self.batches), self.few))
        seen = {one.root: one for one in sensitivity(module, couplings, scores, some, HALF)}
        if not all(
            math.isfinite(one.divergence) for one in seen.values()
        ):  # detections: another number of boxes
            return scores
        widths = {root: (one.kept, one.divergence) for root, one in seen.items()}
        return {
            c.root: _scaled(c, scores[c.root], *widths[c.root]) if c.root in widths else scores[c.root]
            for c in couplings
        }


def _scaled(coupling: Coupling, score: Tensor, kept: int, divergence: float) -> Tensor:
    """The score (C,) so that the damage of keeping `kept` channels is the divergence that was measured.

    Where Taylor saw nothing and the measurement did, all channels are worth the same.
    """
    one = ladder(coupling, score, Rules(multiple=1, floor=0.0))
    damage = one.damage[one.widths.index(kept)]
    if damage <= 0 and divergence > LEAST:
        return _scaled(coupling, torch.ones_like(score), kept, divergence)
    return score * (max(divergence, LEAST) / damage) if damage > 0 else score
