"""Widths that meet a latency: a device's layer table and the widths of all couplings, solved as a knapsack.

What it must satisfy: a layer's time depends on its input and output widths jointly; what a network takes
beyond its layers (weights that are not in the cache any more, norms, sums, changes of layout) is spread over
them by what each moves through memory, outputs and weights, when the dense network itself was measured; one
prediction serves the planner and the report.

Ours, and measured: EfficientNet-Lite0 takes 0.5 ms of 2.8 beyond its layers; spread by outputs alone, three
plans at half the latency were predicted 10 to 27% too slow, spread by both 4 to 6%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgeprune.bench.layer_graphs import Grid
from edgeprune.bench.table import Layer, LayerShape, LayerTable
from edgeprune.errors import UsageError
from edgeprune.prune import knapsack
from edgeprune.prune.knapsack import Cost
from edgeprune.prune.ladder import Ladder
from edgeprune.prune.macs import Costs, Side, Term, moves

Array = NDArray[np.float64]
Removed = Mapping[str, Any]
RUNGS = 24  # widths of a coupling that the knapsack looks at; a wide one is thinned evenly
CELLS = 500_000  # entries of one layer's table of times; beyond it, inputs are taken as adding up
NODES = 2_000  # looks that the proof of the optimum may take
WIDEST = 8  # couplings that one layer may read for all widths to be solved jointly
POINTS = 7  # widths of a side that are measured
GRAIN = 8  # of those widths: what kernels take at a time
ROUNDS = 8  # of the knapsack, each with less room
SLACK = 0.995  # of the room that the last prediction suggests


def grids(costs: Costs, points: int = POINTS) -> list[Grid]:
    """The distinct layer shapes of a network, each with the widths to measure it at.

    A side that some coupling shortens has at most `points` widths, in about equal ratios from an eighth of the
    narrowest use to the widest, multiples of GRAIN (and of the groups); other sides the widths they have.
    """
    found: dict[LayerShape, list[Term]] = {}
    for term in costs.terms:
        if term.shapes:
            found.setdefault(term.shapes[0], []).append(term)
    made = []
    for shape, terms in found.items():
        whole = shape.groups == 0
        outputs = _widths([t.outputs for t in terms], shape.group[1] if whole else shape.groups, points)
        inputs = (1,) if whole else _widths([t.inputs for t in terms], shape.groups, points)
        made.append(Grid(shape, inputs, outputs))
    return made


def _widths(sides: Sequence[Side], groups: int, points: int) -> tuple[int, ...]:
    fixed = {round(s.size) for s in sides if not s.loses}
    cut = [round(s.size) for s in sides if s.loses]
    if not cut:
        return tuple(sorted(fixed))
    step = int(np.lcm(GRAIN, groups))
    low, high = max(min(cut) // 8, min(step, *cut)), max(cut)
    ideal = np.geomspace(low, high, points)
    thinned = {int(min(max(round(w / step) * step, groups), high)) for w in ideal[:-1]} | {high}
    return tuple(sorted(thinned | {w for w in fixed if w > high or w < min(thinned)}))


@dataclass(frozen=True)
class Predictor:
    """Milliseconds of one network at any widths: scale * (layers by the table + fixed) + rate * what they move."""

    costs: Costs
    table: LayerTable
    scale: float = 1.0
    rate: float = 0.0

    @staticmethod
    def of(costs: Costs, table: LayerTable, dense: Costs, dense_ms: float | None = None) -> Predictor:
        """A predictor of `costs` that gives the dense network the time it was measured to take, if it was.

        dense_ms: of the network that `dense` was traced from; without it the table's own, when the table measured a
        network of the same MACs. Layers that together take longer than the network are scaled down alike.
        """
        if dense_ms is None and table.network.get("macs") == int(dense.macs(dense.full)):
            dense_ms = float(table.network["p50_ms"])
        plain = Predictor(dense, table)
        layers = float(plain.at(dense.full))
        if dense_ms is None:
            return Predictor(costs, table)
        if dense_ms <= layers:
            return Predictor(costs, table, dense_ms / layers)
        return Predictor(costs, table, 1.0, (dense_ms - layers) / max(float(dense.moved(dense.full)), 1.0))

    def at(self, widths: Array) -> Any:
        """Milliseconds at widths of shape (couplings,) or (couplings, many)."""
        gone = self.costs.full.reshape(-1, *[1] * (widths.ndim - 1)) - widths
        took = self.table.fixed_ms * self.scale + self.rate * self.costs.moved(widths)
        for layer, sizes, loses in self._layers:
            outputs, inputs = sizes.reshape(2, -1, *[1] * (widths.ndim - 1)) - np.tensordot(
                loses, gone, axes=1
            )
            took = took + self.scale * layer.at(inputs, outputs).sum(axis=0)
        return took

    @cached_property
    def _layers(self) -> list[tuple[Layer, Array, Array]]:
        """For each grid its layers' outputs and inputs: sizes (2, n), and what they lose (2, n, couplings)."""
        terms: dict[LayerShape, list[Term]] = {}
        for term in self.costs.terms:
            if term.shapes:
                terms.setdefault(self.table.find(*term.shapes).shape, []).append(term)
        where = {root: i for i, root in enumerate(self.costs.roots)}
        made = []
        for shape, some in terms.items():
            sides = [[t.outputs for t in some], [t.inputs for t in some]]
            loses = np.zeros((2, len(some), len(where)))
            for i, row in enumerate(sides):
                for j, side in enumerate(row):
                    for root, entries in side.loses.items():
                        loses[i, j, where[root]] = entries
            sizes = np.array([[s.size for s in row] for row in sides], dtype=float)
            made.append((self.table.find(shape), sizes, loses))
        return made

    def term(self, term: Term, removed: Removed) -> Any:
        """What one layer adds when so many channels of each coupling are gone (numbers or arrays of one shape)."""
        took: Any = 0.0
        for part in moves(term):
            took = took + self.rate * part.times * math.prod(_length(side, removed) for side in part.sides)
        if term.shapes:
            layer = self.table.find(*term.shapes)
            took = took + self.scale * layer.at(_length(term.inputs, removed), _length(term.outputs, removed))
        return took


@dataclass(frozen=True)
class Timing:
    """What is known of a device: its layer table, and on this machine how to time a network.

    dense_ms: of the dense network, measured; clock: milliseconds of a network, on the scale of dense_ms. Both are
    None when the table comes from another device.
    """

    table: LayerTable | None = None
    dense_ms: float | None = None
    clock: Callable[[nn.Module], float] | None = None

    def predictor(self, costs: Costs, dense: Costs) -> Predictor:
        """A predictor of a network's costs, true for the dense one."""
        if self.table is None:
            raise UsageError("a latency budget needs a layer table: give --table FILE")
        return Predictor.of(costs, self.table, dense, self.dense_ms)


def _length(side: Side, removed: Removed) -> Any:
    return side.size - sum(entries * removed.get(root, 0.0) for root, entries in side.loses.items())


def joint(predictor: Predictor) -> bool:
    """Whether layers read few enough couplings for the knapsack; in dense blocks it takes minutes, descent seconds."""
    read = ({r for side in term.sides for r in side.loses} for term in predictor.costs.terms)
    return max(map(len, read), default=0) <= WIDEST


def choose(predictor: Predictor, ladders: Sequence[Ladder], limit_ms: float) -> list[int]:
    """The most valuable rungs that are predicted to run within `limit_ms`, or in ROUNDS not much beyond it.

    One ladder a coupling, in the order of the predictor's roots. BudgetNotMet when nothing is found. Layers that read
    many couplings are approximate here: it aims lower until the prediction agrees.
    """
    steps = [_thinned(one) for one in ladders]
    values = [_values(one, s) for one, s in zip(ladders, steps, strict=True)]
    costs = _costs(predictor, ladders, steps)
    fixed = predictor.scale * predictor.table.fixed_ms + sum(float(c.table) for c in costs if not c.groups)
    room = limit_ms - fixed
    paid = [c for c in costs if c.groups]
    for _ in range(ROUNDS):
        choice = knapsack.solve(values, paid, room, NODES)
        at = [s[p] for s, p in zip(steps, choice.picks, strict=True)]
        widths = np.array([one.widths[i] for one, i in zip(ladders, at, strict=True)], dtype=float)
        took = float(predictor.at(widths))
        if took <= limit_ms * (1 + 1e-9):
            break
        room *= SLACK * limit_ms / took
    return at


def _thinned(one: Ladder) -> list[int]:
    """Indices of at most RUNGS of a ladder's widths, the ends among them."""
    last = len(one.widths) - 1
    return sorted({round(i) for i in np.linspace(0, last, min(RUNGS, last + 1))})


def _values(one: Ladder, steps: Sequence[int]) -> Array:
    """The damage that each of the steps spares, relative to the lowest."""
    kept = np.concatenate([[0.0], np.cumsum([one.lost(j) for j in range(len(one.worth))])])
    return kept[list(steps)]


def _costs(predictor: Predictor, ladders: Sequence[Ladder], steps: Sequence[Sequence[int]]) -> list[Cost]:
    """A table of milliseconds for each layer, over the widths of the couplings that it reads and makes."""
    number = {one.root: g for g, one in enumerate(ladders)}
    merged: dict[tuple[int, ...], Array] = {}
    for term in predictor.costs.terms:
        groups = tuple(sorted({number[r] for side in term.sides for r in side.loses}))
        gone = {
            g: ladders[g].widths[-1] - np.array([ladders[g].widths[s] for s in steps[g]], float)
            for g in groups
        }
        if np.prod([float(len(gone[g])) for g in groups]) <= CELLS:
            parts = [(groups, _times(predictor, term, groups, gone, ladders))]
        else:
            parts = _apart(predictor, term, groups, gone, ladders)
        for some, times in parts:
            merged[some] = merged.get(some, np.zeros(times.shape)) + times
    return [Cost(groups, times) for groups, times in merged.items()]


def _times(
    predictor: Predictor,
    term: Term,
    groups: tuple[int, ...],
    gone: Mapping[int, Array],
    ladders: Sequence[Ladder],
) -> Array:
    """Milliseconds of a layer at all joint widths of some couplings, the others whole; one axis a coupling."""
    removed: dict[str, Any] = {}
    for axis, g in enumerate(groups):
        shape = [-1 if a == axis else 1 for a in range(len(groups))]
        removed[ladders[g].root] = np.broadcast_to(gone[g].reshape(shape), [len(gone[h]) for h in groups])
    return np.broadcast_to(np.asarray(predictor.term(term, removed), float), [len(gone[g]) for g in groups])


def _apart(
    predictor: Predictor,
    term: Term,
    groups: tuple[int, ...],
    gone: Mapping[int, Array],
    ladders: Sequence[Ladder],
) -> list[tuple[tuple[int, ...], Array]]:
    """The same when a layer reads too many couplings at once (dense blocks): what each saves alone, added up.

    Each saving is joint with the coupling that sets the output width, when there is one.
    """
    makes = [g for g in groups if ladders[g].root in term.sides[0].loses][:1]
    base = _times(predictor, term, tuple(makes), gone, ladders)
    parts = [(tuple(makes), base)]
    for g in groups:
        if g not in makes:
            pair = tuple(sorted((g, *makes)))
            whole = np.expand_dims(base, pair.index(g)) if makes else base
            parts.append((pair, _times(predictor, term, pair, gone, ladders) - whole))
    return parts
