"""How much each channel matters: one criterion a file, none of which touches a weight.

Each is a frozen dataclass, called with a module and its couplings; it returns for each root that can be cut a
`(C,)` float tensor on the CPU, finite, larger = keep. Those that look at images take them at construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor, nn

from edgeprune.prune.coupling import Couplings


class Relative(dict[str, Tensor]):
    """Scores (C,) with mean 1 in each coupling: they compare its channels alone; how couplings compare is the planner's
    (`edgeprune.prune.budget`).
    """


def relative(scores: Mapping[str, Tensor]) -> Relative:
    """Scores divided by the mean of their coupling; all-zero scores stay zero."""
    return Relative({root: s / s.mean() if float(s.mean()) > 0 else s for root, s in scores.items()})


class Score(Protocol):
    """A criterion. looks: at "target" images, at labelled "source" images, or at weights alone ("")."""

    looks: ClassVar[str]

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep."""
        ...
