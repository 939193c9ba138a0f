"""What is to be cut: facts only, frozen, JSON; no tensor and no network inside.

A score never touches weights: scores -> budget -> PruningPlan -> edgeprune.prune.surgery.apply(network, plan).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from edgeprune.errors import PlanError


@dataclass(frozen=True)
class Cut:
    """Of the coupling rooted at layer `root`, `width` channels wide, the channels `keep` stay.

    `keep` is strictly increasing and inside range(width), and never empty.
    """

    root: str
    width: int
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        bounded = (-1, *self.keep, self.width)
        if not self.keep or any(a >= b for a, b in pairwise(bounded)):
            raise PlanError(
                f"{self.root}: the kept channels must be increasing, at least one, and below {self.width}; "
                f"received {len(self.keep)} of them: {self.keep[:6]}"
            )


@dataclass(frozen=True)
class LowRank:
    """Layer `layer` becomes a pair of layers of inner width `rank`."""

    layer: str
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PlanError(f"{self.layer}: the rank must be at least 1; received {self.rank}")


@dataclass(frozen=True)
class PruningPlan:
    """Which channels stay and which layers become low-rank after that: ranks are of the network that has been cut.

    A coupling that `cuts` does not name keeps all its channels, so an empty plan changes nothing. `why` holds what
    led to the plan (score, budget, achieved numbers): JSON values only, ignored by surgery.
    """

    cuts: tuple[Cut, ...] = ()
    low_rank: tuple[LowRank, ...] = ()
    why: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        cuts, ranks = [c.root for c in self.cuts], [r.layer for r in self.low_rank]
        twice = sorted({n for names in (cuts, ranks) for n in names if names.count(n) > 1})
        if twice:
            raise PlanError(
                f"a plan names each layer once in its cuts and once in its ranks; named twice: {', '.join(twice)}"
            )

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {
            "cuts": [{"root": c.root, "width": c.width, "keep": list(c.keep)} for c in self.cuts],
            "low_rank": [dataclasses.asdict(r) for r in self.low_rank],
            "why": dict(self.why),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PruningPlan:
        """Read what `to_json` wrote; PlanError names what is missing or of the wrong type."""
        try:
            cuts = tuple(
                Cut(str(c["root"]), int(c["width"]), tuple(int(k) for k in c["keep"])) for c in data["cuts"]
            )
            ranks = tuple(LowRank(str(r["layer"]), int(r["rank"])) for r in data.get("low_rank", ()))
            why = dict(data.get("why") or {})
        except (KeyError, TypeError, ValueError) as err:
            raise PlanError(f"not a pruning plan: {err!r}; expected cuts with root, width and keep") from err
        return PruningPlan(cuts, ranks, why)

    def dumps(self) -> str:
        """The plan as one JSON text."""
        return json.dumps(self.to_json(), sort_keys=True)
