"""What the operators that move, reshape or pick from axes do to labels; rules_parts.py has those that cut and
join.

Sound as rules.py: what the forward fixes by a constant is pinned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from edgeprune.prune.constants import integers
from edgeprune.prune.labels import Ids
from edgeprune.prune.rules_parts import PART_RULES
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
    axes = trace.axes(x)
    made: Axes = [None] * out.dim()
    if x.numel() == 0:
        trace.put(out, made)
        return
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
    axes: Axes = [*[None] * lead, *trace.axes(x)]
    # What is spread over an axis takes part in whatever that axis meets later.
    grown = [n for n in range(out.dim()) if out.shape[n] > 1 and (n < lead or x.shape[n - lead] == 1)]
    for n in grown:
        axes[n] = trace.labels.new(out.shape[n])
    trace.put(out, axes)
    _bind_sizes(trace, x, out, [a if n in grown else None for n, a in enumerate(axes)])


def _repeat(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x, out, times = args[0], outs[0], list(args[1])
    lead = out.dim() - x.dim()
    axes: Axes = [*[None] * lead, *trace.axes(x)]
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
    **PART_RULES,
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
    "index": _index,
    "index_select": _index_select,
    "unfold": _unfold,
    "im2col": _im2col,
    "col2im": _col2im,
}
