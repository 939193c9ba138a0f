"""From scores to a plan that meets its budgets: as near below them as widths allow.

What it must satisfy: budgets are ceilings and all hold at once; the plan keeps at least 0.98 of the tightest
one unless the next larger legal plan exceeds it (`why["next"]` names that step); the same input gives the
same plan; no weight is touched. BudgetNotMet names the nearest plan that is possible.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from edgeprune.errors import PlanError, UsageError
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import macs
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Ladder, Rules, ladder
from edgeprune.prune.macs import Costs
from edgeprune.prune.search import KINDS, Search

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Budget:
    """Ceilings, all of which must hold: a fraction kept when at most 1, else absolute. None: no ceiling.

    channels: of the channels inside blocks; with it, block outputs stay whole.
    """

    macs: float | None = None
    params: float | None = None
    channels: float | None = None

    @staticmethod
    def parse(*, macs: str | None, params: str | None, channels: str | None) -> Budget:
        """Words such as "0.4", "40%", "120M"; UsageError when they are none, or an absolute number has no
        unit.
        """
        words = {"macs": macs, "params": params, "channels": channels}
        return Budget(**{kind: _number(kind, word) for kind, word in words.items() if word is not None})

    @property
    def given(self) -> dict[str, float]:
        """The ceilings that are set, by name."""
        return {kind: v for kind in KINDS if (v := getattr(self, kind)) is not None}

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for."""
        return not self.given

    def limits(self, dense: Mapping[str, float]) -> dict[str, float]:
        """Absolute ceilings, given what the dense network has of each."""
        return {kind: v * dense[kind] if v <= 1 else v for kind, v in self.given.items()}

    def __str__(self) -> str:
        return ", ".join(f"{kind} {v:g}" for kind, v in self.given.items())


def _number(kind: str, word: str) -> float:
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmg%]?)", word.strip().lower())
    try:
        value = float(found[1]) if found else math.nan
    except ValueError:
        value = math.nan
    unit = found[2] if found else ""
    value = value / 100 if unit == "%" else value * _UNITS[unit]
    if not value > 0 or (value > 1 and not unit):
        raise UsageError(
            f"--{kind} {word}: expected what is kept: a fraction such as 0.4, or an absolute 120M (K, M or G)"
        )
    return value


def plan(
    module: nn.Module,
    example: Any,
    couplings: Couplings,
    scores: Mapping[str, Tensor],
    limits: Mapping[str, float],
    *,
    multiple: int = 8,
    floor: float = 0.1,
    rank: str = "global",
) -> PruningPlan:
    """Which channels stay within absolute `limits` on macs, params or channels; see `choose`."""
    costs = macs.trace(module, example, couplings)
    return choose(costs, couplings, scores, limits, Rules(multiple, floor, rank))


def choose(
    costs: Costs,
    couplings: Couplings,
    scores: Mapping[str, Tensor],
    limits: Mapping[str, float],
    rules: Rules,
) -> PruningPlan:
    """Which channels stay. costs: `macs.trace(module, example, couplings)`; scores: (C,) for each root.

    BudgetNotMet (the message names the nearest plan's numbers) when all couplings at their lowest exceed a
    ceiling. `why` of the result: rank, multiple, floor, requested, dense, achieved, padded_macs, next,
    widths.
    """
    if not limits or set(limits) - set(KINDS) or any(not v > 0 for v in limits.values()):
        raise UsageError(f"a budget needs ceilings above 0 on {', '.join(KINDS)}; received {dict(limits)}")
    search = Search(costs, _ladders(couplings, scores, limits, rules), limits)
    search.require_possible()
    if rules.rank == "global":
        search.descend()
    else:
        search.cut(rules.rank)
    search.fill()
    search.exchange()
    search.enumerate()
    cuts = tuple(
        Cut(one.root, one.widths[-1], one.keep(one.widths[at]))
        for one, at in zip(search.ladders, search.at, strict=True)
        if at < len(one.widths) - 1
    )
    return PruningPlan(cuts, why=search.why(rules))


def _ladders(
    couplings: Couplings, scores: Mapping[str, Tensor], limits: Mapping[str, float], rules: Rules
) -> list[Ladder]:
    missing = [c.root for c in couplings if c.root not in scores]
    if missing:
        raise PlanError(
            f"{missing[0]}: no scores for this coupling; received scores for {len(scores)} couplings"
        )
    out = []
    for coupling in couplings:
        one = ladder(coupling, scores[coupling.root], rules)
        stays = "channels" in limits and not coupling.inner
        out.append(replace(one, widths=one.widths[-1:], worth=()) if stays else one)
    return out
