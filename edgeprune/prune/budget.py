"""Scores and a budget -> a plan: a ceiling that is never exceeded, and filled as far as legal widths allow.

Pure planning: no weight is touched. The search is greedy over chunks of channels, always the one that costs the least
score for what it saves, then gives back what still fits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.errors import BudgetNotMet, UsageError, nearest
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import macs
from edgeprune.prune.coupling import Coupling, Couplings
from edgeprune.prune.macs import Costs

Array = NDArray[Any]
_KINDS = ("macs", "params", "channels")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Budget:
    """What may be kept at most: MACs, parameters, channels inside blocks; up to 1 a fraction of the dense, above absolute."""

    macs: float | None = None
    params: float | None = None
    channels: float | None = None

    @staticmethod
    def parse(*, macs: str | None, params: str | None, channels: str | None) -> Budget:
        """Words such as "0.4", "40%", "120M"; UsageError when they are none, or an absolute number has no unit."""
        words = {"macs": macs, "params": params, "channels": channels}
        return Budget(**{kind: _number(kind, word) for kind, word in words.items() if word is not None})

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for."""
        return self.macs is None and self.params is None and self.channels is None

    def limits(self, dense: Mapping[str, float]) -> dict[str, float]:
        """Absolute ceilings, given what the dense network has of each."""
        wanted = {kind: getattr(self, kind) for kind in _KINDS}
        return {kind: v * dense[kind] if v <= 1 else v for kind, v in wanted.items() if v is not None}

    def __str__(self) -> str:
        wanted = {kind: getattr(self, kind) for kind in _KINDS}
        return ", ".join(f"{kind} {v:g}" for kind, v in wanted.items() if v is not None)


def _number(kind: str, word: str) -> float:
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmg%]?)", word.strip().lower())
    try:
        value = float(found[1]) if found else math.nan
    except ValueError:
        value = math.nan
    unit = found[2] if found else ""
    value = value / 100 if unit == "%" else value * _UNITS[unit]
    if not value > 0 or (value > 1 and not unit):
        raise UsageError(f"--{kind} {word}: expected what is kept: a fraction such as 0.4, or an absolute 120M (K, M or G)")
    return value


@dataclass(frozen=True)
class Ladder:
    """The legal widths of one coupling, widest first, and which channels each keeps.

    keep[j]: sorted channels of step j. value[j]: sum of their scores; it falls with j.
    """

    root: str
    keep: tuple[tuple[int, ...], ...]
    value: Array

    @property
    def widths(self) -> Array:
        """(steps,) widths."""
        return np.array([len(k) for k in self.keep], dtype=float)


def ladder(coupling: Coupling, scores: Tensor, multiple: int, floor: float) -> Ladder:
    """All legal widths of a coupling under scores (C,), larger = keep.

    Whole units go, and every section keeps as many (the same positions when aligned); widths below the dense one are
    multiples of `multiple` where the unit allows it, and at least `floor` of the dense width. Ties go by position.
    """
    s = scores.detach().double().cpu().numpy()
    if s.shape != (coupling.width,):
        raise UsageError(f"{coupling.root}: scores of shape {s.shape}; expected ({coupling.width},)")
    sections, unit, width = coupling.sections, coupling.unit, coupling.width
    runs = np.arange(width).reshape(sections, width // sections // unit, unit)
    value = s[runs].sum(2)
    if coupling.aligned:
        value = np.broadcast_to(value.sum(0), value.shape)
    order = np.argsort(-value, axis=1, kind="stable")
    grain = sections * unit
    step = grain * max(1, math.ceil(multiple / grain)) if unit == 1 else grain
    least = max(grain, math.ceil(floor * width / grain) * grain)
    widths = [width, *(w for w in range((width - 1) // step * step, 0, -step) if w >= least)]
    keeps = [tuple(sorted(int(c) for a in range(sections) for c in runs[a, order[a, : w // grain]].ravel())) for w in widths]
    return Ladder(coupling.root, tuple(keeps), np.array([s[list(k)].sum() for k in keeps]))


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
    """The plan that keeps the most score within absolute `limits` on macs, params or channels.

    rank: "global" lets all channels compete, by score lost for each share of the budget saved; "local" takes the same
    fraction everywhere. `why` holds achieved beside requested. BudgetNotMet names the least that legal widths reach.
    """
    if rank not in ("global", "local"):
        raise UsageError(f"--rank {rank}: {nearest(rank, ('global', 'local'))}")
    costs = macs.trace(module, example, couplings)
    by_root = {c.root: c for c in couplings}
    ladders = [ladder(by_root[root], scores[root], multiple, floor) for root in costs.roots]
    search = _Search(costs, ladders, dict(limits))
    search.require_possible()
    if rank == "local":
        search.uniform()
    else:
        search.descend()
    search.fill()
    cuts = tuple(
        Cut(lad.root, len(lad.keep[0]), lad.keep[j]) for lad, j in zip(ladders, search.place, strict=True) if j > 0
    )
    return PruningPlan(cuts, (), search.why(multiple))


class _Search:
    """Where on its ladder each coupling stands, and what the network costs there."""

    def __init__(self, costs: Costs, ladders: list[Ladder], limits: dict[str, float]) -> None:
        self.costs, self.ladders, self.limits = costs, ladders, limits
        self.place = [0] * len(ladders)

    def widths(self, place: list[int] | None = None) -> Array:
        places = self.place if place is None else place
        return np.array([len(lad.keep[j]) for lad, j in zip(self.ladders, places, strict=True)], dtype=float)

    def used(self, widths: Array) -> dict[str, Array]:
        """Each limited quantity as a share of its limit, for widths (couplings,) or (couplings, many)."""
        return {kind: getattr(self.costs, kind)(widths) / limit for kind, limit in self.limits.items()}

    def over(self, widths: Array) -> Any:
        """The fullest of the limits; at most 1 when all are met."""
        return np.max(np.stack([np.asarray(v, float) for v in self.used(widths).values()]), axis=0)

    def require_possible(self) -> None:
        least = self.widths([len(lad.keep) - 1 for lad in self.ladders])
        if self.over(least) > 1 + 1e-9:
            reached = {kind: float(getattr(self.costs, kind)(least)) for kind in self.limits}
            dense = {kind: float(getattr(self.costs, kind)(self.costs.full)) for kind in self.limits}
            said = ", ".join(f"--{k} {v / dense[k]:.3f} ({v:.4g})" for k, v in reached.items())
            asked = ", ".join(f"{k} {v:.4g}" for k, v in self.limits.items())
            raise BudgetNotMet(f"{asked} cannot be met: the least that legal widths reach is {said}; or lower --floor or --multiple")

    def _moves(self, by: int) -> tuple[list[int], Array]:
        """The couplings that can go `by` a step, and the widths (couplings, moves) after each move alone."""
        can = [i for i, lad in enumerate(self.ladders) if 0 <= self.place[i] + by < len(lad.keep)]
        now = self.widths()
        many = np.repeat(now[:, None], len(can), axis=1)
        for column, i in enumerate(can):
            many[i, column] = len(self.ladders[i].keep[self.place[i] + by])
        return can, many

    def descend(self) -> None:
        """Take the chunk with the least score lost for what it saves, until the ceiling is met."""
        while (before := float(self.over(self.widths()))) > 1 + 1e-12:
            can, many = self._moves(1)
            used = self.used(self.widths())
            worst = max(used, key=lambda kind: float(used[kind]))
            saved = float(used[worst]) - np.asarray(self.used(many)[worst], float)
            lost = np.array([self.ladders[i].value[self.place[i]] - self.ladders[i].value[self.place[i] + 1] for i in can])
            rate = np.where(saved > 1e-12, np.maximum(lost, 0) / np.maximum(saved, 1e-12), np.inf)
            if not np.isfinite(rate).any():
                raise BudgetNotMet(f"no further cut lowers what is {before:.3f} times the ceiling")
            self.place[can[int(np.argmin(rate))]] += 1

    def uniform(self) -> None:
        """The largest fraction, the same for every coupling, whose legal widths meet the ceiling."""
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            self.place = [self._at(lad, middle) for lad in self.ladders]
            low, high = (middle, high) if self.over(self.widths()) <= 1 + 1e-12 else (low, middle)
        self.place = [self._at(lad, low) for lad in self.ladders]

    @staticmethod
    def _at(lad: Ladder, fraction: float) -> int:
        fits = np.flatnonzero(lad.widths <= fraction * lad.widths[0] + 1e-9)
        return int(fits[0]) if len(fits) else len(lad.keep) - 1

    def fill(self) -> None:
        """Give back, the most score for its cost first, whatever still fits below the ceiling."""
        while True:
            can, many = self._moves(-1)
            if not can:
                return
            over = np.asarray(self.over(many), float)
            gain = np.array([self.ladders[i].value[self.place[i] - 1] - self.ladders[i].value[self.place[i]] for i in can])
            cost = over - float(self.over(self.widths()))
            rate = np.where(over <= 1 + 1e-12, (gain + 1e-30) / np.maximum(cost, 1e-12), -np.inf)
            best = int(np.argmax(rate))
            if not np.isfinite(rate[best]):
                return
            self.place[can[best]] -= 1

    def why(self, multiple: int) -> dict[str, Any]:
        """Achieved beside requested, and the next larger legal plan."""
        now = self.widths()
        facts: dict[str, Any] = {
            "requested": dict(self.limits),
            "achieved": {kind: float(getattr(self.costs, kind)(now)) for kind in _KINDS},
            "dense": {kind: float(getattr(self.costs, kind)(self.costs.full)) for kind in _KINDS},
            "padded_macs": float(self.costs.macs(now, pad=multiple)),
        }
        can, many = self._moves(-1)
        if can:
            over = np.asarray(self.over(many), float)
            i = int(np.argmin(over))
            facts["next"] = {"layer": self.ladders[can[i]].root, "of_the_budget": float(over[i])}
        return facts
