"""A plan that meets a latency: a device's layer table and the widths of all couplings, solved as a knapsack.

What it must satisfy: a layer's time depends on its input and output widths jointly; the predicted time of the
plan is below the limit; `scale` corrects the table when the whole network was measured and took longer or
shorter than the sum of its layers. Products without a weight (attention), and norms, are in `fixed_ms` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgeprune.bench.table import Layer, LayerShape, LayerTable
from edgeprune.errors import BudgetNotMet
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import knapsack
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.knapsack import Cost
from edgeprune.prune.ladder import Ladder, Rules, ladder
from edgeprune.prune.macs import Costs, Side, Term

Array = NDArray[np.float64]
RUNGS = 24  # widths of a coupling that the knapsack looks at; a wide one is thinned evenly
CELLS = 500_000  # entries of one layer's table of times; beyond it, inputs are taken as adding up
NODES = 2_000  # looks that the proof of the optimum may take


def shapes(costs: Costs) -> dict[LayerShape, tuple[int, int]]:
    """The distinct layer shapes of a network, and the largest input and output widths each one is used at."""
    found: dict[LayerShape, tuple[int, int]] = {}
    for term in costs.terms:
        if term.shape is not None:
            size = _full(term)
            before = found.get(term.shape, (0, 0))
            found[term.shape] = (max(before[0], size[0]), max(before[1], size[1]))
    return found


def _full(term: Term) -> tuple[int, int]:
    """Dense input and output channels; for a grouped layer over all groups."""
    assert term.shape is not None
    groups = term.shape.groups
    out, inn = round(term.sides[0].size), round(term.sides[1].size)
    if groups == 0:
        return out, out
    return (inn, out * groups) if term.shape.op == "ConvTranspose" else (inn * groups, out)


def predict(costs: Costs, table: LayerTable, widths: Array) -> float:
    """Milliseconds of the network at some widths (couplings,), by the table."""
    total = table.fixed_ms
    for term in costs.terms:
        if term.shape is not None:
            removed = {r: float(f - w) for r, f, w in zip(costs.roots, costs.full, widths, strict=True)}
            inputs, outputs = _at(term, removed)
            total += table.find(term.shape).at(inputs, outputs)
    return total


def _at(term: Term, removed: Mapping[str, Any]) -> tuple[Any, Any]:
    """Input and output channels of a layer when so many channels of each coupling are gone."""
    assert term.shape is not None
    groups = term.shape.groups
    out, inn = (_length(side, removed) for side in term.sides[:2])
    if groups == 0:
        return out, out
    return (inn, out * groups) if term.shape.op == "ConvTranspose" else (inn * groups, out)


def _length(side: Side, removed: Mapping[str, Any]) -> Any:
    return side.size - sum(entries * removed[root] for root, entries in side.loses.items())


def plan(
    costs: Costs,
    couplings: Couplings,
    scores: Mapping[str, Tensor],
    table: LayerTable,
    limit_ms: float,
    rules: Rules,
    scale: float = 1.0,
) -> PruningPlan:
    """The most valuable widths that the table expects to run within `limit_ms`; BudgetNotMet names the least
    it can.

    scale: measured time of a whole network over what the table predicted for it (layers and fixed time
    alike).
    """
    ladders = [ladder(c, scores[c.root], rules) for c in couplings]
    steps = [_thinned(one) for one in ladders]
    values = [_values(one, s) for one, s in zip(ladders, steps, strict=True)]
    costs_of = _costs(costs, table, ladders, steps)
    room = limit_ms / scale - table.fixed_ms
    try:
        for _ in range(
            8
        ):  # layers that read many couplings are approximate: aim lower until the table agrees
            choice = knapsack.solve(values, costs_of, room, NODES)
            widths = [one.widths[s[p]] for one, s, p in zip(ladders, steps, choice.picks, strict=True)]
            took = predict(costs, table, np.array(widths, dtype=float)) * scale
            if took <= limit_ms * (1 + 1e-9):
                break
            room *= 0.995 * limit_ms / took
        else:
            raise BudgetNotMet("no width was found")
    except BudgetNotMet:
        least = np.array([one.widths[0] for one in ladders], dtype=float)
        raise BudgetNotMet(
            f"{limit_ms:.3g} ms cannot be met: the least that legal widths reach on {table.device} is about "
            f"{predict(costs, table, least) * scale:.3g} ms; lower --floor, or ask for more"
        ) from None
    cuts = tuple(
        Cut(o.root, o.widths[-1], o.keep(w)) for o, w in zip(ladders, widths, strict=True) if w < o.widths[-1]
    )
    at = np.array(widths, dtype=float)
    why = {
        "requested": {"latency_ms": limit_ms},
        "achieved": {"latency_ms": predict(costs, table, at) * scale, "macs": float(costs.macs(at))},
        "dense": {
            "latency_ms": predict(costs, table, costs.full) * scale,
            "macs": float(costs.macs(costs.full)),
        },
        "scale": scale,
        "table": {"device": table.device, "runtime": table.runtime, "precision": table.precision},
        "proved": choice.proved,
        "widths": {o.root: [w, o.widths[-1]] for o, w in zip(ladders, widths, strict=True)},
    }
    return PruningPlan(cuts, why=why)


def _thinned(one: Ladder) -> list[int]:
    """Indices of at most RUNGS of a ladder's widths, the ends among them."""
    last = len(one.widths) - 1
    return sorted({round(i) for i in np.linspace(0, last, min(RUNGS, last + 1))})


def _values(one: Ladder, steps: Sequence[int]) -> Array:
    """The score that is kept at each of the steps, relative to the lowest."""
    kept = np.concatenate([[0.0], np.cumsum([one.lost(j) for j in range(len(one.worth))])])
    return kept[list(steps)]


def _costs(
    costs: Costs, table: LayerTable, ladders: Sequence[Ladder], steps: Sequence[Sequence[int]]
) -> list[Cost]:
    """A table of milliseconds for each layer, over the widths of the couplings that it reads and makes."""
    number = {one.root: g for g, one in enumerate(ladders)}
    merged: dict[tuple[int, ...], Array] = {}
    for term in costs.terms:
        if term.shape is None:
            continue
        layer = table.find(term.shape)
        groups = tuple(sorted({number[r] for side in term.sides[:2] for r in side.loses}))
        gone = {
            g: ladders[g].widths[-1] - np.array([ladders[g].widths[s] for s in steps[g]], float)
            for g in groups
        }
        if np.prod([float(len(gone[g])) for g in groups]) <= CELLS:
            parts = [(groups, _times(term, layer, groups, gone, ladders))]
        else:
            parts = _apart(term, layer, groups, gone, ladders)
        for some, times in parts:
            merged[some] = merged.get(some, np.zeros(times.shape)) + times
    return [Cost(groups, times) for groups, times in merged.items()]


def _times(
    term: Term, layer: Layer, groups: tuple[int, ...], gone: Mapping[int, Array], ladders: Sequence[Ladder]
) -> Array:
    """Milliseconds of a layer at all joint widths of some couplings, the others whole; one axis a coupling."""
    removed: dict[str, Any] = {r: 0.0 for side in term.sides[:2] for r in side.loses}
    for axis, g in enumerate(groups):
        removed[ladders[g].root] = gone[g].reshape([-1 if a == axis else 1 for a in range(len(groups))])
    inputs, outputs = (np.broadcast_to(x, [len(gone[g]) for g in groups]) for x in _at(term, removed))
    times: Array = np.vectorize(layer.at, otypes=[float])(inputs, outputs)
    return times


def _apart(
    term: Term, layer: Layer, groups: tuple[int, ...], gone: Mapping[int, Array], ladders: Sequence[Ladder]
) -> list[tuple[tuple[int, ...], Array]]:
    """The same when a layer reads too many couplings at once (dense blocks): what each saves alone, added up.

    Each saving is joint with the coupling that sets the output width, when there is one.
    """
    makes = [g for g in groups if ladders[g].root in term.sides[0].loses][:1]
    base = _times(term, layer, tuple(makes), gone, ladders)
    parts = [(tuple(makes), base)]
    for g in groups:
        if g not in makes:
            pair = tuple(sorted((g, *makes)))
            whole = np.expand_dims(base, pair.index(g)) if makes else base
            parts.append((pair, _times(term, layer, pair, gone, ladders) - whole))
    return parts
