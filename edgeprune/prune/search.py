"""The search for widths below all ceilings, as near to the tightest one as legal widths allow.

How: the ranking takes channels away, step by step, until all budgets are met; then widths are raised again, those that
the ranking would take last first, as long as the budgets hold. If that leaves more than 2%, one coupling is raised at
the price of lowering another, by the exchange that changes least, until none is fuller; where there are few plans in
all, each is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import BudgetNotMet
from edgeprune.prune.ladder import Ladder, Rules, removals
from edgeprune.prune.macs import Costs

KINDS = ("macs", "params", "channels")
LATENCY = "latency"  # milliseconds; budgeted where a device's predictor is given
FULL_ENOUGH = 0.98
FEW = 20_000  # plans that are all looked at
Widths = NDArray[np.float64]


Gauges = Mapping[str, Callable[[Widths], Any]]


def gauges(costs: Costs, latency: Callable[[Widths], Any] | None = None) -> Gauges:
    """All that can be budgeted, as functions of widths (couplings,) or (couplings, many)."""
    found: dict[str, Callable[[Widths], Any]] = {k: getattr(costs, k) for k in KINDS}
    return found if latency is None else {**found, LATENCY: latency}


class Search:
    """Where each ladder stands (`at`: an index into its widths), and the moves between such states."""

    def __init__(
        self,
        costs: Costs,
        ladders: Sequence[Ladder],
        limits: Mapping[str, float],
        latency: Callable[[Widths], Any] | None = None,
    ) -> None:
        self.costs, self.ladders, self.gauges = costs, ladders, gauges(costs, latency)
        self.dense = self.measured(costs.full)
        self.ceilings = dict(limits)
        self.names = list(self.ceilings)
        self.limits = np.array([self.ceilings[n] for n in self.names])
        self.at = [len(one.widths) - 1 for one in ladders]
        self.order: dict[tuple[int, int], int] = {}

    def widths(self, at: Sequence[int]) -> Widths:
        """The width of each coupling, (couplings,)."""
        return np.array([one.widths[i] for one, i in zip(self.ladders, at, strict=True)], dtype=float)

    def measured(self, widths: Widths) -> dict[str, float]:
        """All that can be budgeted, at some widths."""
        return {name: float(gauge(widths)) for name, gauge in self.gauges.items()}

    def used(self, widths: Widths) -> Widths:
        """What is budgeted as a share of its ceiling, (budgets, ...); all at most 1 is legal."""
        values = np.stack([np.asarray(self.gauges[n](widths), dtype=float) for n in self.names])
        shares: Widths = values / self.limits.reshape(-1, *[1] * (values.ndim - 1))
        return shares

    def fits(self, at: Sequence[int]) -> bool:
        """Whether every ceiling holds."""
        return bool((self.used(self.widths(at)) <= 1).all())

    def cut(self, rank: str) -> None:
        """The shortest prefix of the ranking's removals that meets every budget."""
        order = removals(self.ladders, rank)
        states = self._states(order)
        rungs = [len(one.widths) - 1 for one in self.ladders]
        for place, i in enumerate(order):
            rungs[i] -= 1
            self.order[i, rungs[i]] = place
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
        """Step down where the least damage is done for each share of the tightest budget saved, until all hold.

        Of a budget on MACs, what counts as saved is `Costs.work`, so that among plans of equal MACs the faster wins.
        """
        while (used := self.used(self.widths(self.at))).max() > 1:
            movable = [i for i, at in enumerate(self.at) if at]
            many = np.repeat(self.widths(self.at)[:, None], len(movable), axis=1)
            for column, i in enumerate(movable):
                many[i, column] = self.ladders[i].widths[self.at[i] - 1]
            tightest = int(used.argmax())
            saved = used[tightest] - self.used(many)[tightest]
            if self.names[tightest] == "macs":
                work = self.costs.work(self.widths(self.at)) - self.costs.work(many)
                saved = np.where(saved > 0, work, 0.0)
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
        got = self.measured(self.widths(lowest))
        said = ", ".join(
            f"{n} {_said(n, got[n])} ({got[n] / (self.dense[n] or 1):.3f} of dense), "
            f"asked for at most {_said(n, limit)}"
            for n, limit in self.ceilings.items()
        )
        raise BudgetNotMet(f"the smallest plan possible has {said}: ask for that or more")

    def _ups(self, at: Sequence[int]) -> tuple[list[int], Widths]:
        """Ladders that can go one step up, and all widths after each such step, (couplings, ups)."""
        movable = [i for i, one in enumerate(self.ladders) if at[i] < len(one.widths) - 1]
        many = np.repeat(self.widths(at)[:, None], len(movable), axis=1)
        for column, i in enumerate(movable):
            many[i, column] = self.ladders[i].widths[at[i] + 1]
        return movable, many

    def fill(self) -> None:
        """Step up while the budgets hold: what `cut` took last first, else the most valuable channels."""
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
        """The damage that one step up undoes, for each channel; when `cut` ranked them, how late it takes that step."""
        one, at = self.ladders[i], self.at[i]
        if self.order:
            return float(self.order[i, at])
        return one.lost(at) / (one.widths[at + 1] - one.widths[at])

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

    def look_at_all(self) -> None:
        """Where there are few plans in all and less than 0.98 is used: of those that use as much, else the fullest, the
        one of least damage; when `cut` ranked them, the one nearest to its own.
        """
        counts = [len(one.widths) for one in self.ladders]
        few = max(counts, default=1) > 1 and math.prod(counts) <= FEW
        if self.share() >= FULL_ENOUGH or not few:
            return
        every = np.stack(np.unravel_index(np.arange(math.prod(counts)), counts))
        many = np.stack(
            [np.array(one.widths, dtype=float)[row] for one, row in zip(self.ladders, every, strict=True)]
        )
        used = self.used(many)
        top = np.where((used <= 1).all(0), used.max(0), -1.0)
        if top.max() > self.share() + 1e-9:
            if self.order:
                worse = np.abs(every - np.array(self.at)[:, None]).sum(0).astype(float)
            else:
                worse = sum(np.array(one.damage)[row] for one, row in zip(self.ladders, every, strict=True))
            enough = np.where(top >= min(FULL_ENOUGH, float(top.max())), worse, np.inf)
            self.at = [int(i) for i in every[:, int(enough.argmin())]]
            self.fill()

    def _best_exchange(self, share: float) -> list[int] | None:
        """Of the exchanges that use 0.98 the one that changes least (see `_worse`), else the fullest; None when none is
        fuller than now.
        """
        found: tuple[tuple[bool, float], list[int]] | None = None
        for i, one in enumerate(self.ladders):
            for up in range(self.at[i] + 1, min(self.at[i] + 3, len(one.widths))):
                tried = [
                    {i: up, j: self.at[j] - d}
                    for j in range(len(self.ladders))
                    if j != i
                    for d in (1, 2, 3)
                    if self.at[j] >= d
                ]
                if not tried:
                    continue
                many = np.repeat(self.widths(self.at)[:, None], len(tried), axis=1)
                for column, moved in enumerate(tried):
                    for j, at in moved.items():
                        many[j, column] = self.ladders[j].widths[at]
                used = self.used(many)
                top = np.where((used <= 1).all(0), used.max(0), -1.0)
                for k in np.flatnonzero(top > share + 1e-9):
                    enough = bool(top[k] >= FULL_ENOUGH)
                    key = enough, -self._worse(tried[k]) if enough else float(top[k])
                    if found is None or key > found[0]:
                        found = key, [tried[k].get(n, at) for n, at in enumerate(self.at)]
        return None if found is None else found[1]

    def _worse(self, moved: Mapping[int, int]) -> float:
        """The damage that moves of some ladders do; when `cut` ranked them, how many steps they are."""
        if self.order:
            return float(sum(abs(at - self.at[i]) for i, at in moved.items()))
        return sum(self.ladders[i].damage[at] - self.ladders[i].damage[self.at[i]] for i, at in moved.items())

    def why(self, rules: Rules) -> dict[str, Any]:
        """What led to the plan, as JSON values."""
        widths = self.widths(self.at)
        got = self.measured(widths)
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
            **self.measured(many[:, k]),
        }


def _said(name: str, value: float) -> str:
    return f"{value:.3g} ms" if name == LATENCY else f"{value:,.0f}"
