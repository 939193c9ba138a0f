"""MACs and parameters of a network as an exact function of the widths its couplings keep.

What it must satisfy: traced once, then evaluated thousands of times in milliseconds; what it predicts for a
plan is what the cut network measures. One multiply-add is one MAC; convolutions and matrix products count,
functional attention included; norms, activations and biases do not. All numbers are of one image.

The form: a product's MACs are a constant times the lengths of its sides, and each side loses a fixed number
of entries per channel removed from each coupling (concatenations: several couplings on one side):

    macs(w) = sum_p t_p prod_s ( n_ps - sum_c a_psc (W_c - w_c) )

Beside them, `work`: MACs, and for each element of an output or a weight that a product moves as many again as a
device does in that time. It says which of two plans of equal MACs is faster; no number that is reported uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.bench.table import LayerShape
from edgeprune.errors import PlanError
from edgeprune.prune.coupling import Coupling, Couplings, Slot
from edgeprune.prune.product import Product
from edgeprune.prune.trace import products, step

Array = NDArray[np.float64]
# MACs in the time of one element moved, activations after it included. Ours; benchmarks/planner.py has what other
# values are worth: on eight networks at half of their MACs 0 is a tenth slower in the median, and 150 alike.
MOVING = 48.0


@dataclass(frozen=True)
class Side:
    """One side of a product: its length, and how many entries go with each channel of a coupling.

    padded: a channel side of a weight, which a device rounds up.
    """

    size: float
    loses: Mapping[str, float]
    padded: bool = False


@dataclass(frozen=True)
class Term:
    """times * the lengths of all sides. name: the layer or "(functional)"; shapes: what a layer table may call it.

    For a layer, `sides[0]` and `sides[1]` are the axes of its weight for output and input, the channels of one group
    where the weight has those; `outputs` and `inputs` are the channels over all groups.
    """

    name: str
    times: float
    sides: tuple[Side, ...]
    shapes: tuple[LayerShape, ...] = ()
    outputs: Side = Side(0, {})
    inputs: Side = Side(0, {})


class _Sum:
    """A sum of terms, evaluated for many widths at once."""

    def __init__(self, terms: Sequence[Term], roots: Sequence[str]) -> None:
        where = {root: i for i, root in enumerate(roots)}
        sides = [s for t in terms for s in t.sides]
        self.times = np.array([t.times for t in terms])
        self.starts = np.cumsum([0, *(len(t.sides) for t in terms)])[:-1]
        self.sizes = np.array([s.size for s in sides])
        self.padded = np.array([s.padded for s in sides], dtype=bool)
        self.loses = np.zeros((len(sides), len(roots)))
        for row, side in enumerate(sides):
            for root, entries in side.loses.items():
                self.loses[row, where[root]] = entries

    def each(self, removed: Array, multiple: int = 1) -> Array:
        """Every term's value, shape (terms, ...) for removed channels of shape (couplings, ...)."""
        flat = removed.reshape(len(removed), math.prod(removed.shape[1:]))
        lengths = self.sizes[:, None] - self.loses @ flat
        if multiple > 1:
            up = np.ceil(lengths / multiple - 1e-9) * multiple
            lengths = np.where(self.padded[:, None], up, lengths)
        values = np.multiply.reduceat(lengths, self.starts, axis=0) * self.times[:, None]
        whole: Array = np.rint(values).reshape(-1, *removed.shape[1:])
        return whole


@dataclass(frozen=True)
class Costs:
    """The cost model of one network. Widths are arrays in the order of `roots`, (couplings,) or (couplings,
    many).
    """

    roots: tuple[str, ...]
    full: Array
    inner: NDArray[np.bool_]
    terms: tuple[Term, ...]
    _macs: _Sum
    _params: _Sum
    _moved: _Sum

    def widths(self, kept: Mapping[str, int]) -> Array:
        """Widths by name as an array; a root that is not named keeps all. PlanError for an unknown root."""
        unknown = sorted(set(kept) - set(self.roots))
        if unknown:
            raise PlanError(f"no coupling that can be cut is rooted at {unknown[0]!r}")
        return np.array([kept.get(r, w) for r, w in zip(self.roots, self.full, strict=True)], dtype=float)

    def _removed(self, widths: Array) -> Array:
        return self.full.reshape(-1, *[1] * (widths.ndim - 1)) - widths

    def macs(self, widths: Array, pad: int = 1) -> Any:
        """MACs; with `pad`, the channel sides of weights are rounded up to multiples of it ("padded MACs")."""
        return self._macs.each(self._removed(widths), pad).sum(axis=0)

    def moved(self, widths: Array) -> Any:
        """Elements of the outputs of all products and of their weights."""
        return self._moved.each(self._removed(widths)).sum(axis=0)

    def work(self, widths: Array) -> Any:
        """MACs, and the elements of outputs and weights as MACs: what time follows on any device, more or less."""
        return self.macs(widths) + MOVING * self.moved(widths)

    def params(self, widths: Array) -> Any:
        """Parameters, each shared one counted once; buffers are not parameters."""
        return self._params.each(self._removed(widths)).sum(axis=0)

    def channels(self, widths: Array) -> Any:
        """Channels inside blocks (couplings that no residual stream passes through)."""
        return widths[self.inner].sum(axis=0)


def trace(module: nn.Module, example: Any, couplings: Couplings) -> Costs:
    """Run the network on one image of `example` (a tensor or a tuple of arguments) and build its cost model.

    The couplings must list their slots, as `edgeprune.prune.graph.find` does.
    """
    cuttable = list(couplings)
    roots = [c.root for c in cuttable]
    slots: Slots = {}
    for coupling in cuttable:
        for slot in coupling.slots:
            slots.setdefault((slot.name, slot.dim), []).append((coupling, slot))
    steps = {c.root: len(step(c)) for c in cuttable}
    nothing = Term("(none)", 0.0, (Side(0, {}),))
    terms = tuple(_term(p, slots, steps) for p in products(module, _one(example), couplings)) or (nothing,)
    sizes = tuple(_size(n, p.shape, slots) for n, p in module.named_parameters()) or (nothing,)
    full = np.array([c.width for c in cuttable], dtype=float)
    inner = np.array([c.inner for c in cuttable], dtype=bool)
    moved = [part for term in terms for part in moves(term)]
    sums = _Sum(terms, roots), _Sum(sizes, roots), _Sum(moved, roots)
    return Costs(tuple(roots), full, inner, terms, *sums)


def measure(module: nn.Module, example: Any) -> tuple[int, int]:
    """MACs and parameters of a network as it stands, on one image of `example`."""
    macs = sum(p.macs for p in products(module, _one(example), Couplings(())))
    return macs, sum(p.numel() for p in module.parameters())


def padded(module: nn.Module, example: Any, multiple: int) -> int:
    """MACs of a network with the channel sides of its weights rounded up to a multiple."""
    costs = trace(module, example, Couplings(()))
    return int(costs.macs(costs.full, pad=multiple))


def _one(example: Any) -> Any:
    """The same example with one image."""
    if isinstance(example, torch.Tensor):
        return example[:1]
    return tuple(x[:1] if isinstance(x, torch.Tensor) else x for x in example)


Slots = dict[tuple[str, int], list[tuple[Coupling, Slot]]]


def _loses(slots: Slots, name: str, dim: int, low: int = 0, high: float = math.inf) -> dict[str, float]:
    """Entries low..high-1 of a parameter's axis that go with each channel, on average, per coupling.

    An index that several channels share goes with the last of them, so it counts once.
    """
    out: dict[str, float] = {}
    for coupling, slot in slots.get((name, dim), ()):
        if low == 0 and high >= slot.size and all(len(s) == 1 for s in slot.slices):
            entries = len(set(slot.slices))
        else:
            entries = len({i for s in slot.slices for i in s if low <= i < high})
        if entries:
            out[coupling.root] = out.get(coupling.root, 0.0) + entries / coupling.width
    return out


def _term(product: Product, slots: Slots, steps: Mapping[str, int]) -> Term:
    """A product as a term: the axes of a weight from the slots, all other sides from the marks."""
    sides = [
        Side(size, {r: n / steps[r] for r, n in marks.items()})
        for size, marks in zip(product.sides, product.marked, strict=True)
    ]
    name = product.weight
    if name is not None:
        first, second = product.axes
        sides[first] = Side(sides[first].size, _loses(slots, name, 0, *product.rows), True)
        sides[second] = Side(sides[second].size, _loses(slots, name, 1), sides[second].size > 1)
    batch, rows, inner, columns = sides
    if name is None:
        return Term("(functional)", product.times, (columns, inner, batch, rows))
    lists = (product.kernel, product.stride, product.padding, product.dilation)
    fixed = LayerShape(product.kind, product.size, *lists, product.groups)
    ordered, own = (columns, inner, batch, rows), name.removesuffix(".weight")
    if product.groups == 1:
        return Term(own, product.times, ordered, (fixed,), columns, inner)
    group = (int(inner.size), int(columns.size))
    transposed = product.kind == "ConvTranspose"
    whole, one = (inner, columns) if transposed else (columns, inner)  # the axis over all groups, that of one
    group = (group[0] // product.groups, group[1]) if transposed else (group[0], group[1] // product.groups)
    shapes = replace(fixed, groups=0, group=group), fixed
    if one.loses:
        other = _times(one, product.groups)
        shapes = shapes[::-1]
    else:
        other = _times(whole, one.size / (whole.size / product.groups))
    ends = (other, whole) if transposed else (whole, other)
    return Term(own, product.times, ordered, shapes, *ends)


def _times(side: Side, factor: float) -> Side:
    return Side(side.size * factor, {root: n * factor for root, n in side.loses.items()})


def moves(term: Term) -> list[Term]:
    """The elements of a product's output, and of its weight if it has one."""
    if not term.shapes:
        return [Term(term.name, 1.0, (term.sides[0], *term.sides[2:]))]
    weight = Term(term.name, float(math.prod(term.shapes[0].kernel)), term.sides[:2])
    return [Term(term.name, 1.0, (term.outputs, *term.sides[2:])), weight]


def _size(name: str, shape: Sequence[int], slots: Slots) -> Term:
    """A parameter's number of elements as a term."""
    return Term(
        name, 1.0, tuple(Side(n, _loses(slots, name, d)) for d, n in enumerate(shape)) or (Side(1, {}),)
    )
