"""What each operator does to labelled axes: arithmetic, contractions, norms, reductions.

A rule must be sound: what it does not understand it pins, with a reason. rules_shape.py has the operators
that move axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edgeprune.prune.constants import Attribute, integers
from edgeprune.prune.labels import Ids
from edgeprune.prune.rules_shape import SHAPE_RULES
from edgeprune.prune.tracing import Axes, Trace

Rule = Callable[[Trace, Any, Any, list[Tensor]], None]


def apply(trace: Trace, name: str, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    """Put labels on the results of operator `name`."""
    rule = RULES.get(name) or RULES.get(name.rstrip("_"))
    if rule is not None:
        rule(trace, args, kwargs, outs)
        return
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not outs:
        return
    if not inputs:
        for out in outs:
            trace.put(out, [trace.labels.new(s) if s > 1 else None for s in out.shape])
        return
    if len(outs) == 1 and _broadcasts(inputs, outs[0]):
        pointwise(trace, name, inputs, outs[0])
        return
    for tensor in inputs:
        for ids in trace.axes(tensor):
            trace.pin(ids, f"the operator {name} is not followed")


def _broadcasts(inputs: list[Tensor], out: Tensor) -> bool:
    try:
        return bool(torch.broadcast_shapes(*[t.shape for t in inputs]) == out.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False


def pointwise(trace: Trace, name: str, inputs: list[Tensor], out: Tensor) -> None:
    """Equal positions meet; axes of length one are spread."""
    axes: Axes = []
    known = [(trace.axes(t), tuple(t.shape)) for t in inputs if t.dim() > 0]
    activations = sum(trace.name_of(t) is None for t in inputs if t.dim() > 2)
    for back in range(out.dim(), 0, -1):
        size = out.shape[-back]
        here = [a[-back] for a, shape in known if len(shape) >= back and shape[-back] == size and size > 1]
        ids = here[0] if here else None
        for other in here[1:]:
            if name.startswith("add") and activations > 1 and _differ(trace, ids, other):
                trace.streams.append(ids)  # type: ignore[arg-type]
            ids = trace.meet(ids, other)
        axes.append(ids)
    trace.put(out, axes)


def _differ(trace: Trace, one: Ids | None, two: Ids | None) -> bool:
    return (
        one is not None
        and two is not None
        and not np.array_equal(trace.labels.roots(one), trace.labels.roots(two))
    )


def _convolution(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x, weight, bias = args[:3]
    transposed, groups = bool(args[6]), int(args[8])
    xs, ws = trace.axes(x), trace.axes(weight)
    for ids in ws[2:]:
        trace.pin(ids, "a kernel's extent")
    out: Axes = [xs[0], *[None] * (outs[0].dim() - 1)]
    for axis in range(2, outs[0].dim()):
        if xs[axis] is not None and outs[0].shape[axis] == x.shape[axis]:
            out[axis] = xs[axis]
        else:
            trace.pin(xs[axis], "a convolution slides along this axis")
    name = trace.name_of(weight)
    if name is not None and xs[1] is not None:
        trace.inputs[name] = xs[1]
    if groups == 1:
        rows, columns = (ws[1], ws[0]) if transposed else (ws[0], ws[1])
        trace.meet(xs[1], columns, "the input has a fixed number of channels")
    else:
        rows = _grouped(trace, xs[1], ws, (x.shape[1], outs[0].shape[1], groups), transposed)
    if bias is not None:
        trace.meet(rows, trace.axes(bias)[0])
    out[1] = rows
    trace.put(outs[0], out)


def _grouped(
    trace: Trace, x: Ids | None, ws: Axes, sizes: tuple[int, int, int], transposed: bool
) -> Ids | None:
    """Group k reads its own inputs (k, i) and writes its own outputs (k, o)."""
    inputs, outputs, groups = sizes
    rows = ws[0]
    if x is None or (transposed and outputs // groups > 1):
        for ids in (x, *ws[:2]):
            trace.pin(ids, "a grouped convolution over fixed channels")
        return None
    assert rows is not None
    group, inner = trace.labels.split(x, (groups, inputs // groups))
    group_out, _ = trace.labels.split(rows, (groups, outputs // groups))
    group = trace.meet(group, group_out, "the groups of a convolution")
    if inputs // groups > 1 and transposed:
        trace.pin(inner, "a grouped transposed convolution")
    elif inputs // groups > 1:
        trace.meet(inner, ws[1], "the columns of a grouped convolution")
    if group is not None:
        if isinstance(trace.running(), nn.modules.conv._ConvNd):
            trace.bind_attribute(Attribute(trace.layer(), "groups"), group)
        else:
            _bind_equal(trace, groups, group)
    return rows


def _bind_equal(trace: Trace, value: int, ids: Ids) -> None:
    """Bind the integer of the call under way that has this value."""
    _, args, kwargs = trace.site
    for number in integers([*args[1:], *kwargs.values()]):
        if number == value and type(number) is not int:
            trace.bind(number, ids)
            return


def _batch_norm(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = list(trace.axes(args[0]))
    for vector in args[1:5]:
        if isinstance(vector, Tensor):
            axes[1] = trace.meet(axes[1], trace.axes(vector)[0])
    trace.put(outs[0], axes)


def _layer_norm(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = list(trace.axes(args[0]))
    count = len(args[1])
    for vector in args[2:4]:
        if isinstance(vector, Tensor):
            for back, ids in zip(range(count, 0, -1), trace.axes(vector), strict=True):
                axes[-back] = trace.meet(axes[-back], ids) if vector.shape[-back] > 1 else axes[-back]
    layer = trace.running()
    for back in range(count, 0, -1):
        ids = axes[-back]
        if ids is None:
            continue
        if isinstance(layer, nn.LayerNorm):
            trace.bind_attribute(Attribute(trace.layer(), "normalized_shape", count - back), ids)
        else:
            _bind_equal(trace, len(ids), ids)
    trace.put(outs[0], axes)


def _group_norm(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    axes = list(trace.axes(args[0]))
    groups = int(args[6])
    for vector in args[1:3]:
        if isinstance(vector, Tensor):
            axes[1] = trace.meet(axes[1], trace.axes(vector)[0])
    if axes[1] is not None and groups > 1:
        group, _ = trace.labels.split(axes[1], (groups, len(axes[1]) // groups))
        if group is not None:
            if isinstance(trace.running(), nn.GroupNorm):
                trace.bind_attribute(Attribute(trace.layer(), "num_groups"), group)
            else:
                _bind_equal(trace, groups, group)
    trace.put(outs[0], axes)


def _contract(trace: Trace, a: Tensor, b: Tensor, out: Tensor, extra: Tensor | None = None) -> None:
    """(..., n, k) @ (..., k, m)."""
    left, right = trace.axes(a), trace.axes(b)
    trace.meet(left[-1], right[-2], "a product with a fixed axis")
    if left[-1] is not None and trace.name_of(a) is None and trace.name_of(b) is None and a.dim() > 2:
        trace.dotted.append(left[-1])
    axes: Axes = [
        trace.meet(p, q) if p is not None or q is not None else None
        for p, q in zip(left[:-2], right[:-2], strict=True)
    ]
    axes += [left[-2], right[-1]]
    if extra is not None:
        for back, ids in enumerate(reversed(trace.axes(extra)), 1):
            if extra.shape[-back] > 1:
                axes[-back] = (
                    trace.meet(axes[-back], ids) if ids is not None or axes[-back] is not None else None
                )
    trace.put(out, axes)


def _mm(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    _contract(trace, args[0], args[1], outs[0])


def _addmm(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    _contract(trace, args[1], args[2], outs[0], args[0])


def _attention(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    q, k, v = (trace.axes(t) for t in args[:3])
    mask = kwargs.get("attn_mask")
    heads = trace.meet(q[1], k[1])
    heads = trace.meet(heads, v[1])
    if mask is not None:
        bias = trace.axes(mask)
        for back in range(1, mask.dim() + 1):
            ids = bias[-back]
            if ids is not None and back == 3:
                heads = trace.meet(heads, ids)
            elif ids is not None:
                trace.pin(ids, "a bias over tokens")
    inner = trace.meet(q[3], k[3])
    if inner is not None:
        trace.dotted.append(inner)
    for tokens in (q[2], k[2], v[2]):
        trace.pin(tokens, "the tokens of an attention")
    trace.put(outs[0], [q[0], heads, None, v[3]])


def _reduce(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    x = args[0]
    dims = _reduced(args, kwargs, x.dim())
    axes = trace.axes(x)
    for out in outs:
        if out.dim() == x.dim():
            trace.put(out, [None if n in dims else ids for n, ids in enumerate(axes)])
        else:
            trace.put(out, [ids for n, ids in enumerate(axes) if n not in dims])


def _which(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    """The position on an axis is an answer, so what stands there must not move; without `dim` the whole counts."""
    x = args[0]
    dims = _reduced(args, kwargs, x.dim())
    for n, ids in enumerate(trace.axes(x)):
        if n in dims or not dims:
            trace.pin(ids, "its position is the answer")
    _reduce(trace, args, kwargs, outs)


def _reduced(args: Any, kwargs: Any, count: int) -> set[int]:
    found = kwargs.get("dim")
    for value in args[1:]:
        if isinstance(value, list | tuple) or (
            found is None and isinstance(value, int) and not isinstance(value, bool)
        ):
            found = value
    if found is None or found == []:
        return set(range(count))
    return {d % count for d in ([found] if isinstance(found, int) else found)}


def _along(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    """Same shape out as in (softmax, cumsum, roll along other axes)."""
    trace.put(outs[0], trace.axes(args[0]))


def _spatial(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    """Pooling, resizing, padding by reflection: the first two axes stay, the others are fixed."""
    x = args[0]
    axes = trace.axes(x)
    fixed = 2 if x.dim() != 3 or outs[0].shape[:2] == x.shape[:2] else 1
    for ids in axes[fixed:]:
        trace.pin(ids, "a pooling or resizing runs along this axis")
    for out in outs:
        trace.put(out, [*axes[:fixed], *[None] * (out.dim() - fixed)])


def _factory_like(trace: Trace, args: Any, kwargs: Any, outs: list[Tensor]) -> None:
    same = isinstance(args[0], Tensor) and args[0].shape == outs[0].shape
    source = trace.axes(args[0]) if same else [None] * outs[0].dim()
    trace.put(
        outs[0],
        [
            i if i is not None or s == 1 else (None if same else trace.labels.new(s))
            for i, s in zip(source, outs[0].shape, strict=True)
        ],
    )


RULES: dict[str, Rule] = {
    **SHAPE_RULES,
    "convolution": _convolution,
    "mm": _mm,
    "bmm": _mm,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_attention_math": _attention,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), _batch_norm
    ),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std"), _reduce),
    **dict.fromkeys(("var_mean", "std_mean", "linalg_vector_norm", "norm", "prod", "any", "all"), _reduce),
    "argmax": _which,
    "argmin": _which,
    **dict.fromkeys(
        ("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "roll", "flip", "as_strided_"), _along
    ),
    **dict.fromkeys(
        [
            "avg_pool1d",
            "avg_pool2d",
            "max_pool2d_with_indices",
            "_adaptive_avg_pool2d",
            "adaptive_max_pool2d",
            "upsample_nearest2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "reflection_pad2d",
            "replication_pad2d",
            "upsample_nearest1d",
        ],
        _spatial,
    ),
    **dict.fromkeys(
        (
            "new_zeros",
            "new_ones",
            "new_empty",
            "new_full",
            "zeros_like",
            "ones_like",
            "empty_like",
            "rand_like",
        ),
        _factory_like,
    ),
}
