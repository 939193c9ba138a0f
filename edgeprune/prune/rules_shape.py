"""What the operators that move, split, join or pick axes do to labels.

Sound as rules.py: a position that the forward fixes by a constant is pinned unless the constant is an attribute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from edgeprune.prune.constants import Extent, Known, integers
from edgeprune.prune.labels import Ids
from edgeprune.prune.tracing import Axes, Trace

Rule = Callable[[Trace, Any, Any, list[Tensor]], None]


def _blocks(before: list[int], after: list[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes with equal products, axes of length one left out."""
    ins, outs = [n for n, s in enumerate(before) if s > 1], [n for n, s in enumerate(after) if s > 1]
    found, i, o = [], 0, 0
    while i < len(ins):
        left, right = [ins[i]], [outs[o]]
        p, q = before[ins[i]], after[outs[o]]
        i, o = i + 1, o + 1
        while p != q:
            if p < q:
                left.append(ins[i])
                p, i = p * before[ins[i]], i + 1
            else:
                right.append(outs[o])
                q, o = q * after[outs[o]], o + 1
        found.append((left, right))
    return found


def _merged(trace: Trace, axes: Axes, sizes: list[int]) -> Ids | None:
    """The labels of several axes seen as one."""
    tracked = [a for a in axes if a is not None]
    if not tracked:
        return None
    whole = tracked[0] if len(tracked) == 1 else trace.labels.product(tracked)
    small = [s if a is not None else 1 for a, s in zip(axes, sizes, strict=True)]
    return np.broadcast_to(whole.reshape(small), sizes).ravel()


def _view(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x, out = args[0], outs[0]
    axes, result = trace.axes(x), [None] * out.dim()
    if x.numel() == 0:
        trace.put(out, result)
        return
    made: Axes = list(result)
    before, after = list(x.shape), list(out.shape)
    for left, right in _blocks(before, after):
        if len(left) == len(right) == 1:
            made[right[0]] = axes[left[0]]
            continue
        whole = _merged(trace, [axes[n] for n in left], [before[n] for n in left])
        if whole is None:
            continue
        if len(right) == 1:
            made[right[0]] = whole
        else:
            for n, ids in zip(right, trace.labels.split(whole, tuple(after[m] for m in right)), strict=True):
                made[n] = ids
    trace.put(out, made)
    _bind_sizes(trace, x, out, made)


def _bind_sizes(trace: Trace, x: Tensor, out: Tensor, axes: Axes) -> None:
    """The sizes that the forward wrote in this view."""
    name, args, _ = trace.site
    if name not in ("view", "reshape", "unflatten", "expand", "_unsafe_view"):
        return
    rest = list(args[1:])
    if name == "unflatten":
        dim = int(rest[0]) % x.dim()
        sizes = [-1] * dim + list(integers(rest[1])) + [-1] * (x.dim() - dim - 1)
    else:
        sizes = list(integers(rest))
    if len(sizes) != out.dim():
        return
    for size, ids in zip(sizes, axes, strict=True):
        if int(size) != -1 and ids is not None:
            trace.bind(size, ids)


def _permute(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = trace.axes(args[0])
    trace.put(outs[0], [axes[d] for d in args[1]])


def _transpose(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = list(trace.axes(args[0]))
    a, b = (args[1], args[2]) if len(args) > 2 else (-1, -2)
    if len(axes) > 1:
        axes[a], axes[b] = axes[b], axes[a]
    trace.put(outs[0], axes)


def _unsqueeze(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = list(trace.axes(args[0]))
    axes.insert(args[1] % outs[0].dim(), None)
    trace.put(outs[0], axes)


def _squeeze(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x = args[0]
    dims = [d % x.dim() for d in integers(list(args[1:]))] if len(args) > 1 else range(x.dim())
    gone = {d for d in dims if x.shape[d] == 1}
    trace.put(outs[0], [a for n, a in enumerate(trace.axes(x)) if n not in gone])


def _expand(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x, out = args[0], outs[0]
    lead = out.dim() - x.dim()
    axes: Axes = [None] * lead + list(trace.axes(x))
    # What is spread over an axis takes part in whatever that axis meets later.
    grown = [n for n in range(out.dim()) if out.shape[n] > 1 and (n < lead or x.shape[n - lead] == 1)]
    for n in grown:
        axes[n] = trace.labels.new(out.shape[n])
    trace.put(out, axes)
    _bind_sizes(trace, x, out, [a if n in grown else None for n, a in enumerate(axes)])


def _repeat(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x, out, times = args[0], outs[0], list(args[1])
    lead = out.dim() - x.dim()
    axes: Axes = [None] * lead + list(trace.axes(x))
    for n, count in enumerate(times):
        ids = axes[n]
        if count > 1:
            axes[n] = np.tile(ids, count) if ids is not None else None
            if n < lead or x.shape[n - lead] == 1:
                axes[n] = trace.labels.new(count)
    trace.put(out, axes)


def _select(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = list(trace.axes(args[0]))
    trace.pin(axes.pop(args[1]), "the forward picks one position of this axis")
    trace.put(outs[0], axes)


def _unbind(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = list(trace.axes(args[0]))
    trace.pin(axes.pop(args[1] if len(args) > 1 else 0), "the forward unpacks this axis")
    for out in outs:
        trace.put(out, list(axes))


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
    """The forward cuts an axis at a position: an attribute follows, equal parts go in step, a number is fixed."""
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
    numbers = list(integers([args[1] if len(args) > 1 else kwargs.get("split_size_or_sections", kwargs.get("split_size"))]))
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
                if ids is None:
                    ids = trace.labels.new(tensor.shape[n])
                    trace.pin(ids, "fixed channels are joined to others")
                trace.streams.append(ids)
                whole.append(ids)
            axes.append(np.concatenate(whole))
    trace.put(out, axes)


def _stack(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outs[0].dim()
    axes = list(trace.axes(args[0][0]))
    for tensor in args[0][1:]:
        axes = [trace.meet(a, b) if a is not None or b is not None else None for a, b in zip(axes, trace.axes(tensor), strict=True)]
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


def _index(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x, picks = args[0], args[1]
    axes = list(trace.axes(x))
    places = [n for n, p in enumerate(picks) if p is not None]
    for n in places:
        trace.pin(axes[n], "the forward picks positions of this axis by a table")
        for ids in trace.axes(picks[n]):
            trace.pin(ids, "a table of positions")
    gap = outs[0].dim() - (x.dim() - len(places))
    rest = [a for n, a in enumerate(axes) if n not in places]
    adjacent = places == list(range(places[0], places[-1] + 1))
    at = places[0] if adjacent else 0
    trace.put(outs[0], [*rest[:at], *[None] * gap, *rest[at:]])


def _index_select(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = list(trace.axes(args[0]))
    trace.pin(axes[args[1]], "the forward picks positions of this axis")
    axes[args[1]] = None
    trace.put(outs[0], axes)


def _unfold(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = list(trace.axes(args[0]))
    dim = args[1] % args[0].dim()
    trace.pin(axes[dim], "windows slide along this axis")
    axes[dim] = None
    trace.put(outs[0], [*axes, None])


def _im2col(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = trace.axes(args[0])
    ids = axes[1]
    times = outs[0].shape[1] // args[0].shape[1]
    trace.put(outs[0], [axes[0], np.repeat(ids, times) if ids is not None else None, None])


def _col2im(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = trace.axes(args[0])
    ids = axes[1]
    if ids is not None:
        channels = outs[0].shape[1]
        ids, window = trace.labels.split(ids, (channels, len(ids) // channels))
        trace.pin(window, "the positions of a window")
    trace.put(outs[0], [axes[0], ids, None, None])


SHAPE_RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "repeat": _repeat,
    "select": _select,
    "unbind": _unbind,
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
    "index": _index,
    "index_select": _index_select,
    "unfold": _unfold,
    "im2col": _im2col,
    "col2im": _col2im,
}
