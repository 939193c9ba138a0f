"""The legal widths of each coupling, which channels each width keeps, and in what order channels go.

What it must satisfy: widths are multiples of `multiple` and never below the floor; units and sections of a coupling
are respected; the order is nested (a smaller width keeps a subset) and deterministic: among equal scores the channel
with the higher index goes first.

A coupling whose width is no multiple keeps its full width as the last rung. One of single channels that is not wider
than `multiple` stays whole: a device would pad it up again. Each of several sections is a multiple too, where it is
wide enough. Where units or sections cannot give multiples without dropping below half (three heads of 20), the
multiple gives way to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgeprune.errors import PlanError, UsageError, nearest
from edgeprune.prune.coupling import Coupling

RANKS = ("global", "threshold", "local", "isomorphic")
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Rules:
    """How channels may go.

    multiple: of kept widths. floor: fraction of a coupling's channels that always stays. rank: over what
    channels compete: "global" (all with all, by damage for each share of the budget saved), "threshold"
    (all with all, by score alone), "local" (the same fraction everywhere), "isomorphic" (the same quantile
    among couplings of the same structure; Fang et al., ECCV 2024, arXiv 2407.04616). dense: widths that
    floors and steps refer to, when the network has been cut before: several cuts end at no width that one may not.
    """

    multiple: int = 8
    floor: float = 0.1
    rank: str = "global"
    dense: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if self.rank not in RANKS:
            raise UsageError(f"no rank is called {self.rank!r}: {nearest(self.rank, RANKS)}")
        if self.multiple < 1 or not 0 <= self.floor <= 1:
            raise UsageError(
                f"expected a multiple of at least 1 and a floor in 0..1; received {self.multiple} and {self.floor}"
            )


def legal(coupling: Coupling, rules: Rules) -> tuple[int, ...]:
    """Widths that may be kept, increasing; the full width is the last."""
    width = coupling.width
    base = rules.dense.get(coupling.root, width) if rules.dense else width
    grain = coupling.unit * coupling.sections
    jump = _step(coupling, base, rules.multiple)
    low = max(jump, math.ceil(round(rules.floor * base / jump, 9)) * jump)
    return (*range(low, width, jump), width) if width > rules.multiple or grain > 1 else (width,)


def _step(coupling: Coupling, base: int, multiple: int) -> int:
    """What the widths of a coupling that is `base` wide in the dense network are multiples of.

    Of the multiple, in every section if that fits, since a device computes them one by one. Where units or sections do
    not divide so, half of the multiple is tried, and so on.
    """
    grain = coupling.unit * coupling.sections
    if grain == 1:
        return multiple
    while True:
        each = coupling.sections * math.lcm(coupling.unit, multiple)
        jump = each if base >= 2 * each else math.lcm(grain, multiple)
        if jump <= base // 2 or multiple == 1:
            return jump
        multiple = multiple // 2 if multiple % 2 == 0 else 1


@dataclass(frozen=True)
class Ladder:
    """One coupling: `widths` increasing, and the channels in the order in which they go (first to go first).

    order: channel numbers. worth[i]: mean score of the channels that leave between widths[i+1] and widths[i].
    damage[i]: of keeping widths[i], 0 at the full width; see `ladder`.
    """

    root: str
    widths: tuple[int, ...]
    order: tuple[int, ...]
    worth: tuple[float, ...]
    damage: tuple[float, ...]
    tag: str

    def lost(self, j: int) -> float:
        """The damage that the step from widths[j+1] to widths[j] adds."""
        return self.damage[j] - self.damage[j + 1]

    def keep(self, width: int) -> tuple[int, ...]:
        """The channels that stay at a width, increasing."""
        return tuple(sorted(self.order[len(self.order) - width :]))


def ladder(coupling: Coupling, score: Tensor, rules: Rules, scale: float = 1.0) -> Ladder:
    """Sort a coupling's channels by score and price each rung. PlanError when the scores do not fit.

    Where the scores S of all channels fall to K, the damage is scale * S (S - K) / K: what is lost, while that is
    little, and without bound as a coupling empties. Scores are estimates of first or second order at the whole network;
    relative to what is left, the layers that read the rest receive (S - K) / K of error for signal. Ours: with S - K
    alone, some couplings went to their floor and others stayed whole.
    """
    values = np.asarray(score.detach().cpu().double().numpy(), dtype=np.float64).reshape(-1)
    if len(values) != coupling.width or not np.isfinite(values).all():
        raise PlanError(
            f"{coupling.root}: expected {coupling.width} finite scores; received {len(values)}, "
            f"of which {int(np.isfinite(values).sum())} are finite"
        )
    order = _order(coupling, values)
    widths = legal(coupling, rules)
    prefix = np.concatenate([[0.0], np.cumsum(values[order])])
    left = [coupling.width - w for w in widths]
    worth = [
        (prefix[left[i]] - prefix[left[i + 1]]) / (left[i] - left[i + 1]) for i in range(len(widths) - 1)
    ]
    damage = _damage(values[order], left, scale)
    return Ladder(
        coupling.root, widths, tuple(int(c) for c in order), tuple(map(float, worth)), damage, _tag(coupling)
    )


def _damage(leaving: Scores, left: Sequence[int], scale: float) -> tuple[float, ...]:
    """Of each width; `left` channels are gone of those whose scores are `leaving`, in their order."""
    suffix = np.concatenate([np.cumsum(np.clip(leaving, 0.0, None)[::-1])[::-1], [0.0]])
    whole = suffix[0]
    if not whole > 0:
        return (0.0,) * len(left)
    kept = np.maximum(suffix[list(left)], whole * 1e-12)
    return tuple(float(d) for d in scale * whole * (whole - kept) / kept)


def _order(coupling: Coupling, values: Scores) -> NDArray[np.int64]:
    """Channels, first to go first; every prefix of whole grains is legal.

    A grain is one unit at the same place of every section.
    """
    units = coupling.width // coupling.sections // coupling.unit
    index = np.arange(coupling.width).reshape(coupling.sections, units, coupling.unit)
    order = np.lexsort((-np.arange(units), values[index].mean((0, 2))))
    grains = index[:, order].swapaxes(0, 1)  # (units, sections, unit)
    means = values[grains].mean((1, 2))
    assert np.all(np.diff(means) >= -1e-9 * (1 + np.abs(means[1:])))
    return grains.reshape(-1)


def _tag(coupling: Coupling) -> str:
    """Equal for couplings of the same structure: kinds of members in order, units and sections."""
    kinds = [f"{m.axis}:{m.tensor.rpartition('.')[2]}:{m.dim}:{len(m.slices[0])}" for m in coupling.members]
    return f"{coupling.unit}/{coupling.sections}/{coupling.inner}/{','.join(kinds)}"


def removals(ladders: Sequence[Ladder], rank: str) -> list[int]:
    """Which ladder steps down next, from all full to all at their lowest: ladder numbers, first to go first."""
    keys: list[tuple[float, int, int]] = []
    pools: dict[str, Scores] = {}
    if rank == "isomorphic":
        for one in ladders:
            pools[one.tag] = np.sort(np.concatenate([pools.get(one.tag, np.empty(0)), _each(one)]))
    for i, one in enumerate(ladders):
        key = -math.inf
        for j in reversed(range(len(one.worth))):
            key = max(key, _key(one, j, rank, pools.get(one.tag)))  # nested: never before the step above it
            keys.append((key, -i, -j))
    return [-i for _, i, _ in sorted(keys)]


def _each(one: Ladder) -> Scores:
    """The worth of every channel that can go, one entry a channel."""
    counts = np.diff(one.widths)
    return np.repeat(np.asarray(one.worth), counts)


def _key(one: Ladder, j: int, rank: str, pool: Scores | None) -> float:
    if rank == "local":
        return 1 - one.widths[j + 1] / one.widths[-1]
    if rank == "isomorphic" and pool is not None:
        return float(np.searchsorted(pool, one.worth[j], side="left")) / max(len(pool), 1)
    return one.worth[j]
