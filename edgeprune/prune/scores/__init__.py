"""How much each channel matters: one criterion a file, none of which touches a weight.

Each is a frozen dataclass, called with a module and its couplings; it returns for each root that can be cut a
`(C,)` float tensor on the CPU, finite, larger = keep. Those that look at images take them at construction.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from edgeprune.prune.coupling import Couplings


class Score(Protocol):
    """A criterion."""

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep."""
        ...
