"""From scores to a plan that meets its budgets: as near below them as widths allow.

What it must satisfy: budgets are ceilings and all hold at once; the plan keeps at least 0.98 of the tightest one
unless the next larger legal plan exceeds it (`why["next"]` names that step); the same input gives the same plan; no
weight is touched. BudgetNotMet names the nearest plan that is possible.

How: the ranking takes channels away, step by step, until all budgets are met; then
widths are raised again, the most valuable first, as long as the budgets hold. If that leaves more than 2%, one
coupling is raised at the price of lowering another, the least loss first, until no exchange helps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.errors import BudgetNotMet, PlanError, UsageError
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import macs
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Ladder, Rules, ladder, removals
from edgeprune.prune.macs import Costs

KINDS = ("macs", "params", "channels")
FULL_ENOUGH = 0.98
FEW = 20_000  # plans that are all looked at
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_Widths = NDArray[np.float64]


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
        """Words such as "0.4", "40%", "120M"; UsageError when they are none, or an absolute number has no unit."""
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


def measured(costs: Costs, widths: _Widths) -> dict[str, float]:
    """All that can be budgeted, at some widths."""
    found = {"macs": costs.macs(widths), "params": costs.params(widths), "channels": costs.channels(widths)}
    return {n: float(v) for n, v in found.items()}


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

    BudgetNotMet (the message names the nearest plan's numbers) when all couplings at their lowest exceed a ceiling.
    `why` of the result: rank, multiple, floor, requested, dense, achieved, padded_macs, next, widths.
    """
    if not limits or set(limits) - set(KINDS) or any(not v > 0 for v in limits.values()):
        raise UsageError(f"a budget needs ceilings above 0 on {', '.join(KINDS)}; received {dict(limits)}")
    search = _Search(costs, _ladders(couplings, scores, limits, rules), limits)
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


class _Search:
    """Where each ladder stands (`at`: an index into its widths), and the moves between such states."""

    def __init__(self, costs: Costs, ladders: Sequence[Ladder], limits: Mapping[str, float]) -> None:
        self.costs, self.ladders = costs, ladders
        self.dense = measured(costs, costs.full)
        self.ceilings = dict(limits)
        self.names = list(self.ceilings)
        self.limits = np.array([self.ceilings[n] for n in self.names])
        self.at = [len(one.widths) - 1 for one in ladders]

    def widths(self, at: Sequence[int]) -> _Widths:
        return np.array([one.widths[i] for one, i in zip(self.ladders, at, strict=True)], dtype=float)

    def used(self, widths: _Widths) -> _Widths:
        """What is budgeted as a share of its ceiling, (budgets, ...); all at most 1 is legal."""
        get = {"macs": self.costs.macs, "params": self.costs.params, "channels": self.costs.channels}
        values = np.stack([np.asarray(get[n](widths), dtype=float) for n in self.names])
        return values / self.limits.reshape(-1, *[1] * (values.ndim - 1))

    def fits(self, at: Sequence[int]) -> bool:
        return bool((self.used(self.widths(at)) <= 1).all())

    def cut(self, rank: str) -> None:
        """The shortest prefix of the ranking's removals that meets every budget."""
        order = removals(self.ladders, rank)
        states = self._states(order)
        low, high = 0, len(order)
        while low < high:  # MACs, parameters and channels only fall along the sequence
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(states(middle)) else (middle + 1, high)
        self.at = states(low)

    def _states(self, order: Sequence[int]) -> Any:
        def after(count: int) -> list[int]:
            gone = (
                np.bincount(order[:count], minlength=len(self.ladders)) if count else [0] * len(self.ladders)
            )
            return [len(one.widths) - 1 - int(g) for one, g in zip(self.ladders, gone, strict=True)]

        return after

    def descend(self) -> None:
        """Step down where the least score is lost for each share of the tightest budget saved, until all hold."""
        while (used := self.used(self.widths(self.at))).max() > 1:
            movable = [i for i, at in enumerate(self.at) if at]
            many = np.repeat(self.widths(self.at)[:, None], len(movable), axis=1)
            for column, i in enumerate(movable):
                many[i, column] = self.ladders[i].widths[self.at[i] - 1]
            tightest = int(used.argmax())
            saved = used[tightest] - self.used(many)[tightest]
            lost = np.array([self.ladders[i].lost(self.at[i] - 1) for i in movable])
            with np.errstate(divide="ignore", invalid="ignore"):
                rate = np.where(saved > 0, lost / saved, np.inf)
            ties = np.flatnonzero(rate <= rate.min())  # the latest of the largest savings
            best = int(ties[np.lexsort((ties, saved[ties]))[-1]])
            self.at[movable[best]] -= 1

    def require_possible(self) -> None:
        """BudgetNotMet unless all couplings at their lowest meet every ceiling."""
        lowest = [0] * len(self.ladders)
        if self.fits(lowest):
            return
        got = measured(self.costs, self.widths(lowest))
        said = ", ".join(
            f"{n} {got[n]:,.0f} ({got[n] / max(self.dense[n], 1):.3f} of dense), asked for at most {limit:,.0f}"
            for n, limit in self.ceilings.items()
        )
        raise BudgetNotMet(
            f"the smallest plan possible has {said}; lower --floor or --multiple, free layers named by --keep, "
            "or ask for more"
        )

    def _ups(self, at: Sequence[int]) -> tuple[list[int], _Widths]:
        """Ladders that can go one step up, and all widths after each such step, (couplings, ups)."""
        movable = [i for i, one in enumerate(self.ladders) if at[i] < len(one.widths) - 1]
        many = np.repeat(self.widths(at)[:, None], len(movable), axis=1)
        for column, i in enumerate(movable):
            many[i, column] = self.ladders[i].widths[at[i] + 1]
        return movable, many

    def fill(self) -> None:
        """Step up while the budgets hold, the most valuable channels first; among equals the larger step."""
        while True:
            movable, many = self._ups(self.at)
            if not movable:
                return
            used = self.used(many)
            fitting = [k for k in range(len(movable)) if (used[:, k] <= 1).all()]
            if not fitting:
                return
            best = max(fitting, key=lambda k: (self._worth(movable[k]), float(used[:, k].max()), -k))
            self.at[movable[best]] += 1

    def _worth(self, i: int) -> float:
        return self.ladders[i].worth[self.at[i]]

    def share(self) -> float:
        """How full the tightest budget is."""
        return float(self.used(self.widths(self.at)).max()) if self.names else 1.0

    def exchange(self) -> None:
        """While less than 0.98 is used and something was cut: one ladder up, another down, then fill again."""
        for _ in range(64):
            share = self.share()
            if share >= FULL_ENOUGH or all(
                i == len(o.widths) - 1 for i, o in zip(self.at, self.ladders, strict=True)
            ):
                return
            best = self._best_exchange(share)
            if best is None:
                return
            self.at = best
            self.fill()

    def enumerate(self) -> None:
        """Where there are few plans in all and less than 0.98 is used: the fullest legal one, by looking at each."""
        counts = [len(one.widths) for one in self.ladders]
        if self.share() >= FULL_ENOUGH or math.prod(counts) > FEW or max(counts, default=1) == 1:
            return
        every = np.stack(np.unravel_index(np.arange(math.prod(counts)), counts))
        many = np.stack(
            [np.array(one.widths, dtype=float)[row] for one, row in zip(self.ladders, every, strict=True)]
        )
        used = self.used(many)
        top = np.where((used <= 1).all(0), used.max(0), -1.0)
        if top.max() > self.share() + 1e-9:
            self.at = [int(i) for i in every[:, int(top.argmax())]]
            self.fill()

    def _best_exchange(self, share: float) -> list[int] | None:
        """The first exchange that uses 0.98, else the fullest; None when none is fuller than now."""
        found: tuple[float, list[int]] | None = None
        for i, one in enumerate(self.ladders):
            for up in range(self.at[i] + 1, min(self.at[i] + 3, len(one.widths))):
                raised = [*self.at]
                raised[i] = up
                downs = [
                    (j, d)
                    for j in range(len(self.ladders))
                    if j != i
                    for d in (1, 2, 3)
                    if self.at[j] - d >= 0
                ]
                if not downs:
                    continue
                many = np.repeat(self.widths(raised)[:, None], len(downs), axis=1)
                for column, (j, d) in enumerate(downs):
                    many[j, column] = self.ladders[j].widths[self.at[j] - d]
                used = self.used(many)
                top = np.where((used <= 1).all(0), used.max(0), -1.0)
                k = int(top.argmax())
                if top[k] > share + 1e-9 and (found is None or top[k] > found[0]):
                    j, d = downs[k]
                    found = (
                        float(top[k]),
                        [s - d if n == j else s for n, s in zip(range(len(raised)), raised, strict=True)],
                    )
                    if found[0] >= FULL_ENOUGH:
                        return found[1]
        return None if found is None else found[1]

    def why(self, rules: Rules) -> dict[str, Any]:
        """What led to the plan, as JSON values."""
        widths = self.widths(self.at)
        got = measured(self.costs, widths)
        return {
            "rank": rules.rank,
            "multiple": rules.multiple,
            "floor": rules.floor,
            "requested": dict(self.ceilings),
            "dense": self.dense,
            "achieved": got,
            "padded_macs": float(self.costs.macs(widths, pad=max(rules.multiple, 1))),
            "next": self._next(),
            "widths": {o.root: [int(w), o.widths[-1]] for o, w in zip(self.ladders, widths, strict=True)},
        }

    def _next(self) -> dict[str, Any] | None:
        """The smallest step up that would exceed a ceiling, and what it would use; None when nothing is cut."""
        movable, many = self._ups(self.at)
        if not movable:
            return None
        used = self.used(many).max(0)
        k = int(used.argmin())
        i = movable[k]
        return {
            "layer": self.ladders[i].root,
            "of_the_budget": float(used[k]),
            "from": self.ladders[i].widths[self.at[i]],
            "to": self.ladders[i].widths[self.at[i] + 1],
            **measured(self.costs, many[:, k]),
        }
