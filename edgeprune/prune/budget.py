"""From scores to a plan that meets its budgets: as near below them as widths allow.

What it must satisfy: budgets are ceilings and all hold at once; the plan keeps at least 0.98 of the tightest one where
the search finds such a plan, and else says which single step up exceeds it (`why["next"]`); the same input gives the
same plan; no weight is touched. BudgetNotMet names the nearest plan that is possible.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import BudgetNotMet, PlanError, UsageError
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import latency, macs
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Ladder, Rules, ladder
from edgeprune.prune.latency import Predictor
from edgeprune.prune.macs import Costs
from edgeprune.prune.scores import Relative
from edgeprune.prune.search import KINDS, LATENCY, Search

FEWEST = 1000.0  # a whole number without a unit from here on is meant as it is
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Budget:
    """Ceilings, all of which must hold: a fraction kept when at most 1, else absolute. None: no ceiling.

    channels: of the channels inside blocks; alone, it leaves block outputs whole. latency: a fraction of the
    dense network's; milliseconds: the same in absolute time; one of the two.
    """

    macs: float | None = None
    params: float | None = None
    channels: float | None = None
    latency: float | None = None
    milliseconds: float | None = None

    @staticmethod
    def parse(
        *, macs: str | None, params: str | None, channels: str | None, latency: str | None = None
    ) -> Budget:
        """Words such as "0.4", "40%", "120M", a latency "2.0ms" or "0.7x"; UsageError when they are none, or
        a number above 1 and below 1,000 has no unit (channels are counted one by one).
        """
        words = {"macs": macs, "params": params, "channels": channels}
        found = {kind: _number(kind, word) for kind, word in words.items() if word is not None}
        return Budget(**found, **_time(latency) if latency is not None else {})

    @property
    def given(self) -> dict[str, float]:
        """The ceilings on what is counted that are set, by name."""
        return {kind: v for kind in KINDS if (v := getattr(self, kind)) is not None}

    @property
    def timed(self) -> bool:
        """Whether there is a ceiling on latency."""
        return self.latency is not None or self.milliseconds is not None

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for."""
        return not self.given and not self.timed

    def limits(self, dense: Mapping[str, float]) -> dict[str, float]:
        """Absolute ceilings, given what the dense network has of each ("latency" in milliseconds)."""
        found = {kind: v * dense[kind] if v <= 1 else v for kind, v in self.given.items()}
        if self.timed and (most := self.deadline(dense[LATENCY])) is not None:
            found[LATENCY] = most
        return found

    def deadline(self, dense_ms: float) -> float | None:
        """The ceiling on latency in milliseconds, None without one."""
        return self.milliseconds if self.latency is None else self.latency * dense_ms

    def __str__(self) -> str:
        said = [
            f"{kind} {v / 1e6:.4g} M" if v > 1 and kind != "channels" else f"{kind} {v:g}"
            for kind, v in self.given.items()
        ]
        said += [f"latency {self.latency:g}x"] if self.latency is not None else []
        said += [f"latency {self.milliseconds:g} ms"] if self.milliseconds is not None else []
        return ", ".join(said)


def _time(word: str) -> dict[str, float]:
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(ms|us|s|x|%)", word.strip().lower())
    value = float(found[1]) if found else math.nan
    unit = found[2] if found else ""
    if not value > 0 or (unit == "x" and value > 1) or (unit == "%" and value > 100):
        raise UsageError(
            f"--latency {word}: expected what is kept: a share of the dense network's, such as 0.7x, or a time "
            "such as 2.0ms"
        )
    if unit in ("x", "%"):
        return {"latency": value / (100 if unit == "%" else 1)}
    return {"milliseconds": value * {"ms": 1.0, "us": 1e-3, "s": 1e3}[unit]}


def _number(kind: str, word: str) -> float:
    found = re.fullmatch(r"([0-9.]+(?:e\+?[0-9]+)?)\s*([kmg%]?)", word.strip().lower())
    try:
        value = float(found[1]) if found else math.nan
    except ValueError:
        value = math.nan
    unit = found[2] if found else ""
    value = value / 100 if unit == "%" else value * _UNITS[unit]
    scientific = "e" in word.lower()
    counted = value >= FEWEST or (kind == "channels" and value >= 2 and value.is_integer())
    if not value > 0 or (value > 1 and (unit == "%" or (unit == "" and not scientific and not counted))):
        absolute = (
            "a number such as 250" if kind == "channels" else "an absolute 120M (K, M or G) or 120000000"
        )
        raise UsageError(
            f"--{kind} {word}: expected what is kept: a fraction up to 1, such as 0.4, or {absolute}"
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
    predictor: Predictor | None = None,
) -> PruningPlan:
    """Which channels stay. costs: `macs.trace(module, example, couplings)`; scores: (C,) for each root.

    predictor: of the same costs, needed for a ceiling on "latency" (milliseconds); ranked globally, the
    knapsack over joint widths says where to start, and other ceilings then take the least valuable away.
    BudgetNotMet (the message names the nearest plan's numbers) when all couplings at their lowest exceed a
    ceiling. `why` of the result: rank, multiple, floor, requested, dense, achieved, padded_macs, next,
    widths.
    """
    kinds = KINDS if predictor is None else (*KINDS, LATENCY)
    if not limits or set(limits) - set(kinds) or any(not v > 0 for v in limits.values()):
        raise UsageError(f"a budget needs ceilings above 0 on {', '.join(kinds)}; received {dict(limits)}")
    gauge = predictor.at if predictor is not None and LATENCY in limits else None
    search = Search(costs, _ladders(costs, couplings, scores, limits, rules), limits, gauge)
    search.require_possible()
    if predictor is not None and gauge is not None and rules.rank == "global" and latency.joint(predictor):
        with contextlib.suppress(BudgetNotMet):  # of its coarser model; from the full widths it goes, too
            search.at = latency.choose(predictor, search.ladders, limits[LATENCY])
    if rules.rank == "global":
        search.descend()
    else:
        search.cut(rules.rank)
    search.fill()
    search.exchange()
    search.look_at_all()
    cuts = tuple(
        Cut(one.root, one.widths[-1], one.keep(one.widths[at]))
        for one, at in zip(search.ladders, search.at, strict=True)
        if at < len(one.widths) - 1
    )
    return PruningPlan(cuts, why=search.why(rules))


def require_possible(costs: Costs, couplings: Couplings, limits: Mapping[str, float], rules: Rules) -> None:
    """BudgetNotMet unless some plan meets absolute `limits` on macs, params and channels, whatever the scores."""
    flat = {c.root: torch.ones(c.width) for c in couplings}
    Search(costs, _ladders(costs, couplings, flat, limits, rules), limits).require_possible()


def _ladders(
    costs: Costs,
    couplings: Couplings,
    scores: Mapping[str, Tensor],
    limits: Mapping[str, float],
    rules: Rules,
) -> list[Ladder]:
    missing = [c.root for c in couplings if c.root not in scores]
    if missing:
        raise PlanError(
            f"{missing[0]}: no scores for this coupling; received scores for {len(scores)} couplings"
        )
    out, scales = [], _scales(costs, couplings, scores)
    for coupling in couplings:
        one = ladder(coupling, scores[coupling.root], rules, scales[coupling.root])
        stays = set(limits) == {"channels"} and not coupling.inner  # only those inside blocks are counted
        out.append(replace(one, widths=one.widths[-1:], worth=(), damage=(0.0,)) if stays else one)
    return out


def _scales(costs: Costs, couplings: Couplings, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """What makes scores of different couplings comparable: 1 unless they compare the channels of one coupling alone.

    A coupling then counts as many units as products make or read its channels (ours), so that a residual stream weighs
    as much as all that hangs on it, however narrow it is.
    """
    if not isinstance(scores, Relative):
        return {c.root: 1.0 for c in couplings}
    counts = Counter(root for term in costs.terms for root in {r for side in term.sides for r in side.loses})
    return {c.root: max(1, counts[c.root]) / c.width for c in couplings}
