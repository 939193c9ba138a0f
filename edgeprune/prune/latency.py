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
from edgeprune.prune.macs import Costs, Side, Term

Array = NDArray[np.float64]
Removed = Mapping[str, Any]
RUNGS = 24  # widths of a coupling that the knapsack looks at; a wide one is thinned evenly
CELLS = 500_000  # entries of one layer's table of times; beyond it, inputs are taken as adding up
NODES = 2_000  # looks that the proof of the optimum may take
WIDEST = 8  # couplings that one layer may read for all widths to be solved jointly
POINTS = 7  # widths of a side that are measured


def grids(costs: Costs, multiple: int = 8, points: int = POINTS) -> list[Grid]:
    """The distinct layer shapes of a network, each with the widths to measure it at.

    A side that some coupling shortens has at most `points` widths, in about equal ratios from an eighth of the
    narrowest use to the widest, multiples of `multiple` (and of the groups); other sides the widths they have.
    """
    found: dict[LayerShape, tuple[list[Side], list[Side]]] = {}
    for term in costs.terms:
        if term.shape is not None:
            outs, ins = found.setdefault(term.shape, ([], []))
            outs.append(_side(term, 0))
            ins.append(_side(term, 1))
    return [
        Grid(
            shape,
            (1,) if shape.groups == 0 else _widths(ins, max(1, shape.groups), multiple, points),
            _widths(outs, max(1, shape.groups), multiple, points),
        )
        for shape, (outs, ins) in found.items()
    ]


def _side(term: Term, which: int) -> Side:
    """The output (0) or input (1) channels of a layer over all its groups."""
    assert term.shape is not None
    side, groups = term.sides[which], term.shape.groups
    times = groups if groups > 1 and which == (0 if term.shape.op == "ConvTranspose" else 1) else 1
    return Side(side.size * times, {root: n * times for root, n in side.loses.items()})


def _widths(sides: Sequence[Side], groups: int, multiple: int, points: int) -> tuple[int, ...]:
    fixed = {round(s.size) for s in sides if not s.loses}
    cut = [round(s.size) for s in sides if s.loses]
    if not cut:
        return tuple(sorted(fixed))
    step = int(np.lcm(multiple, groups))
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
        moved = sum(float(_moved(term, {})) for term in dense.terms)
        return Predictor(costs, table, 1.0, (dense_ms - layers) / max(moved, 1.0))

    def at(self, widths: Array) -> Any:
        """Milliseconds at widths of shape (couplings,) or (couplings, many)."""
        gone = self.costs.full.reshape(-1, *[1] * (widths.ndim - 1)) - widths
        sizes, loses, groups = self._sides
        lengths = sizes.reshape(-1, *[1] * (widths.ndim - 1)) - np.tensordot(loses, gone, axes=1)
        took = np.full(widths.shape[1:], self.table.fixed_ms * self.scale)
        for layer, weight, outs, ins, rest in groups:
            outputs, inputs = lengths[outs], lengths[ins]
            moved = outputs * lengths[rest].prod(axis=1)
            if layer is not None:
                inputs = np.ones_like(inputs) if layer.shape.groups == 0 else inputs
                took = took + self.scale * layer.at(inputs, outputs).sum(axis=0)
                moved = moved + weight * inputs * outputs
            took = took + self.rate * moved.sum(axis=0)
        return took

    @cached_property
    def _sides(self) -> tuple[Array, Array, list[tuple[Layer | None, float, list[int], list[int], Any]]]:
        """All sides as sizes and a matrix of what they lose; per shape: its grid, and the rows of its terms' sides."""
        sides: list[Side] = []
        by_shape: dict[tuple[LayerShape | None, int], list[int]] = {}
        for term in self.costs.terms:
            by_shape.setdefault((term.shape, len(term.sides)), []).append(len(sides))
            layer = term.shape is not None
            sides += [_side(term, 0) if layer else term.sides[0], *term.sides[2:]]
            sides.append(_side(term, 1) if layer else term.sides[-1])
        where = {root: i for i, root in enumerate(self.costs.roots)}
        loses = np.zeros((len(sides), len(where)))
        for row, side in enumerate(sides):
            for root, entries in side.loses.items():
                loses[row, where[root]] = entries
        made: list[tuple[Layer | None, float, list[int], list[int], Any]] = []
        for (shape, count), starts in by_shape.items():
            found = self.table.find(shape) if shape is not None else None
            weight = math.prod(shape.kernel) / max(shape.groups, 1) if shape is not None else 0.0
            last = max(1, count - 1)
            rest = np.array([[s + k for k in range(1, last)] for s in starts], dtype=np.intp)
            made.append((found, weight, starts, [s + last for s in starts], rest))
        return np.array([s.size for s in sides], dtype=float), loses, made

    def term(self, term: Term, removed: Removed) -> Any:
        """What one layer adds when so many channels of each coupling are gone (numbers or arrays of one shape)."""
        took = self.rate * _moved(term, removed)
        if term.shape is not None:
            took = took + self.scale * self.table.find(term.shape).at(*_at(term, removed))
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


def _at(term: Term, removed: Removed) -> tuple[Any, Any]:
    """Input and output channels of a layer, over all groups; of a depthwise one the grid has one input width."""
    out = _length(_side(term, 0), removed)
    if term.shape is not None and term.shape.groups == 0:
        return np.ones_like(np.asarray(out, dtype=float)), out
    return _length(_side(term, 1), removed), out


def _moved(term: Term, removed: Removed) -> Any:
    """Elements of a layer's output, for one image, and of its weight."""
    columns = _side(term, 0) if term.shape is not None else term.sides[0]
    size: Any = 1.0
    for side in (columns, *term.sides[2:]):
        size = size * _length(side, removed)
    if term.shape is None:
        return size
    inputs, outputs = _at(term, removed)
    return size + inputs * outputs * math.prod(term.shape.kernel) / max(term.shape.groups, 1)


def joint(predictor: Predictor) -> bool:
    """Whether layers read few enough couplings for the knapsack; in dense blocks it takes minutes, descent seconds."""
    read = ({r for side in term.sides for r in side.loses} for term in predictor.costs.terms)
    return max(map(len, read), default=0) <= WIDEST


def choose(predictor: Predictor, ladders: Sequence[Ladder], limit_ms: float) -> tuple[list[int], bool]:
    """The most valuable rungs that are expected to run within `limit_ms`, and whether they are proved the best.

    One ladder a coupling, in the order of the predictor's roots. BudgetNotMet when nothing is found.
    """
    steps = [_thinned(one) for one in ladders]
    values = [_values(one, s) for one, s in zip(ladders, steps, strict=True)]
    costs = _costs(predictor, ladders, steps)
    fixed = predictor.scale * predictor.table.fixed_ms + sum(float(c.table) for c in costs if not c.groups)
    room = limit_ms - fixed
    paid = [c for c in costs if c.groups]
    for _ in range(
        8
    ):  # layers that read many couplings are approximate: aim lower until the prediction agrees
        choice = knapsack.solve(values, paid, room, NODES)
        at = [s[p] for s, p in zip(steps, choice.picks, strict=True)]
        widths = np.array([one.widths[i] for one, i in zip(ladders, at, strict=True)], dtype=float)
        took = float(predictor.at(widths))
        if took <= limit_ms * (1 + 1e-9):
            break
        room *= 0.995 * limit_ms / took
    return at, choice.proved


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
