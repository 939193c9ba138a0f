"""Milliseconds of layers as they are and as low-rank pairs of any rank, measured on this machine.

Ours: a pair saves MACs, and writes and reads its middle once more, so it may well take longer than its layer; only
measuring tells. The graphs are those of layer tables (`edgeprune.bench.layer_graphs`), timed one at a time.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import artifact, progress
from edgeprune.bench import layer_graphs, layers
from edgeprune.bench.table import LayerShape
from edgeprune.prune.macs import Costs, Term

POINTS = 6  # ranks of a layer that are measured; between them times are interpolated


@dataclass(frozen=True)
class PairTime:
    """Milliseconds of one layer, all its uses added up: `whole` as it is, `pairs[i]` as a pair of rank `ranks[i]`."""

    whole: float
    ranks: tuple[int, ...]
    pairs: tuple[float, ...]

    def pair(self, rank: Any) -> Any:
        """As a pair of this rank, a number or an array of them; beyond the measured ranks, the nearest."""
        return np.interp(rank, self.ranks, self.pairs)


def measure(costs: Costs, highest: Mapping[str, int], multiple: int, threads: int = 1) -> dict[str, PairTime]:
    """Time layers (name -> highest rank of interest) of a network traced as `costs`, at ranks in multiples.

    A layer that the trace does not have, or that has no such rank, is left out. MissingHere without ONNX Runtime.
    """
    found: dict[str, list[Term]] = {}
    for term in costs.terms:
        if term.shapes and highest.get(term.name, 0) >= multiple:
            found.setdefault(term.name, []).append(term)
    made = {}
    with progress.bar("pairs", total=len(found)) as tick, tempfile.TemporaryDirectory() as scratch:

        @functools.cache
        def took(shape: LayerShape, inputs: int, outputs: int) -> float:
            file = Path(scratch) / "layer.onnx"
            artifact.write_atomically(file, layer_graphs.graph(shape, inputs, outputs).SerializeToString())
            return layers.layer_ms(file, threads, Path(scratch))

        for name, terms in found.items():
            calls = [(t.shapes[0], int(t.inputs.size), int(t.outputs.size)) for t in terms]
            ranks = _ranks(highest[name], multiple)
            pairs = tuple(sum(took(s, n, k) + took(_second(s), k, m) for s, n, m in calls) for k in ranks)
            made[name] = PairTime(sum(took(*call) for call in calls), ranks, pairs)
            tick(1)
    return made


def _ranks(highest: int, multiple: int) -> tuple[int, ...]:
    """At most POINTS multiples of `multiple` up to `highest`, in about equal ratios, increasing."""
    most = highest // multiple
    return tuple(sorted({multiple * round(step) for step in np.geomspace(1, most, POINTS)}))


def _second(shape: LayerShape) -> LayerShape:
    """The second factor: 1 x 1 at the layer's output size; of a matrix product, one of as many rows."""
    if shape.op == "MatMul":
        return shape
    sides = zip(shape.size, shape.kernel, shape.stride, shape.padding, shape.dilation, strict=True)
    size = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
    ones, none = (1,) * len(size), (0,) * len(size)
    return replace(shape, size=size, kernel=ones, stride=ones, padding=none, dilation=ones)
