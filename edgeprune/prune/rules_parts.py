"""What the operators that cut an axis in parts, join or pad do to labels.

Sound as rules.py: where the forward cuts at a number, that many positions are pinned; where it cuts at an
attribute, the attribute follows; where it cuts in equal parts, the parts go in step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from edgeprune.prune.constants import Attribute, Extent, Known, integers
from edgeprune.prune.labels import Ids
from edgeprune.prune.tracing import Axes, Trace

Rule = Callable[[Trace, Any, Any, list[Tensor]], None]


def _even(trace: Trace, ids: Ids, pieces: int) -> None:
    rows = ids.reshape(pieces, -1)
    for row in rows[1:]:
        trace.labels.unify(rows[0], row, f"{trace.layer()}: the halves of a chunk")


def _slice(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x, out = args[0], outs[0]
    dim = (args[1] if len(args) > 1 else 0) % x.dim()
    size = x.shape[dim]
    start = args[2] if len(args) > 2 and args[2] is not None else 0
    end = args[3] if len(args) > 3 and args[3] is not None else size
    step = args[4] if len(args) > 4 else 1
    axes = list(trace.axes(x))
    ids = axes[dim]
    start, end, _ = slice(start, end).indices(size)
    if ids is not None and (start, end, step) != (0, size, 1):
        if step != 1:
            trace.pin(ids, "the forward takes every other position of this axis")
        for edge in (start, end):
            if 0 < edge < size:
                _edge(trace, ids, edge)
        axes[dim] = ids[start:end:step]
    trace.put(out, axes)


def _edge(trace: Trace, ids: Ids, edge: int) -> None:
    """The forward cuts an axis at a position: an attribute follows, equal parts go in step, a number is
    fixed.
    """
    _, args, kwargs = trace.site
    size = len(ids)
    for number in integers([*args[1:], *kwargs.values()]):
        if not isinstance(number, Known) or number not in (edge, edge - size, size - edge):
            continue
        if len(number.origins) == 1 and isinstance(number.origins[0], Extent):
            if len(number.origins[0].labels) == size:
                _even(trace, ids, size // math.gcd(size, edge))
                return
            if len(number.origins[0].labels) == edge:
                trace.meet(ids[:edge], number.origins[0].labels)
                return
        elif number == edge and number.origins:
            trace.bind(number, ids[:edge])
            return
        elif number.origins:
            trace.bind(Known(size - edge, number.origins, number.base), ids[edge:])
            return
    trace.pin(ids[:edge], f"the forward cuts this axis at {edge}")


def _split(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x = args[0]
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % x.dim()
    axes = trace.axes(x)
    ids, begin = axes[dim], 0
    lengths = [out.shape[dim] for out in outs]
    if ids is not None and len(outs) > 1:
        _pieces(trace, ids, lengths)
    for out, length in zip(outs, lengths, strict=True):
        part = list(axes)
        if ids is not None:
            part[dim] = ids[begin : begin + length]
        begin += length
        trace.put(out, part)


def _pieces(trace: Trace, ids: Ids, lengths: list[int]) -> None:
    name, args, kwargs = trace.site
    even = len(set(lengths)) == 1
    numbers = list(
        integers(
            [args[1] if len(args) > 1 else kwargs.get("split_size_or_sections", kwargs.get("split_size"))]
        )
    )
    known = [n for n in numbers if isinstance(n, Known) and n.origins]
    if name == "chunk" or (even and known and isinstance(known[0].origins[0], Extent)):
        if even:
            _even(trace, ids, len(lengths))
        else:
            trace.pin(ids, "a chunk in unequal parts")
        return
    if name not in ("split", "split_with_sizes", "tensor_split"):
        return
    begin = 0
    sizes = numbers * len(lengths) if len(numbers) == 1 else numbers
    if even and len(numbers) == 1:
        _even(trace, ids, len(lengths))
    for origin in (o for n in known if len(n.origins) > 1 for o in n.origins):
        if isinstance(origin, Attribute) and origin.value == len(ids):
            trace.bind_attribute(origin, ids)  # the whole, of which the other pieces are taken
    for size, length in zip(sizes, lengths, strict=False):
        trace.bind(size, ids[begin : begin + length])
        begin += length


def _cat(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    tensors = [t for t in args[0] if t.numel()]
    out = outs[0]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    axes: Axes = []
    for n in range(out.dim()):
        parts = [trace.axes(t)[n] for t in tensors]
        if n != dim:
            ids = parts[0]
            for other in parts[1:]:
                ids = trace.meet(ids, other) if ids is not None or other is not None else None
            axes.append(ids)
        elif all(p is None for p in parts):
            axes.append(None)
        else:
            whole = []
            for ids, tensor in zip(parts, tensors, strict=True):
                part = ids if ids is not None else trace.labels.new(tensor.shape[n])
                if ids is None:
                    trace.pin(part, "fixed channels are joined to others")
                trace.streams.append(part)
                whole.append(part)
            axes.append(np.concatenate(whole))
    trace.put(out, axes)


def _stack(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outs[0].dim()
    axes = list(trace.axes(args[0][0]))
    for tensor in args[0][1:]:
        axes = [
            trace.meet(a, b) if a is not None or b is not None else None
            for a, b in zip(axes, trace.axes(tensor), strict=True)
        ]
    axes.insert(dim, None)
    trace.put(outs[0], axes)


def _pad(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x, pads = args[0], list(args[1])
    axes = list(trace.axes(x))
    written = list(integers(trace.site[1][1])) if trace.site[0] == "pad" and len(trace.site[1]) > 1 else pads
    for n in range(len(pads) // 2):
        dim = x.dim() - 1 - n
        ids = axes[dim]
        if ids is None or not (pads[2 * n] or pads[2 * n + 1]):
            continue
        ends = []
        for side in (2 * n, 2 * n + 1):
            fresh = trace.labels.new(max(pads[side], 0))
            if pads[side] < 0:
                trace.pin(ids, "the forward crops this axis")
            elif pads[side]:
                trace.bind(written[side] if side < len(written) else pads[side], fresh)
            ends.append(fresh)
        axes[dim] = np.concatenate([ends[0], ids, ends[1]]) if min(pads[2 * n : 2 * n + 2]) >= 0 else None
    trace.put(outs[0], axes)


PART_RULES: dict[str, Rule] = {
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
}
