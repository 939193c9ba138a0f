"""One run of a network in which every channel axis carries labels: what unifies them is read off the
operations.

Two interceptors: functions, for the integers that the forward writes down, and operators (aten), for what
happens to the axes. The run is on real tensors, so any forward that runs can be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from edgeprune.prune.constants import Attribute, Extent, Known, Origin, integers
from edgeprune.prune.labels import Ids, Labels

Axes = list[Ids | None]


@dataclass(frozen=True, eq=False)
class Operation:
    """One operator as it ran: its name, the axes of its tensor arguments, and those of its results, with
    their strides.
    """

    name: str
    inputs: list[Axes]
    outputs: list[Axes]
    strides: list[tuple[int, ...]]


_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]


@dataclass(eq=False)
class Trace:
    """What one or more runs of a network have shown.

    params: tensor name -> labels of each of its axes. bound: attribute -> the axes it counts. inputs: weight
    name of a convolution -> labels of its input channels. streams: labels that a residual sum or a
    concatenation passes on. dotted: labels contracted between two activations (the dimensions of a head).
    order: layers as they ran.
    """

    module: nn.Module
    labels: Labels = field(default_factory=Labels)
    params: dict[str, Axes] = field(default_factory=dict)
    bound: dict[Attribute, list[Ids]] = field(default_factory=dict)
    pending: list[tuple[tuple[Origin, ...], Ids]] = field(default_factory=list)
    inputs: dict[str, Ids] = field(default_factory=dict)
    streams: list[Ids] = field(default_factory=list)
    dotted: list[Ids] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    history: list[Operation] = field(default_factory=list)
    stack: list[str] = field(default_factory=lambda: [""])
    site: tuple[str, tuple[Any, ...], Mapping[str, Any]] = ("", (), {})
    _names: dict[int, str] = field(default_factory=dict)
    _axes: Any = field(default_factory=WeakIdKeyDictionary)

    def __post_init__(self) -> None:
        for name, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
            self._names[id(tensor)] = name
            self.params[name] = [self.labels.new(size) if size > 1 else None for size in tensor.shape]

    def name_of(self, tensor: Tensor) -> str | None:
        """The dotted name when the tensor is a parameter or buffer."""
        return self._names.get(id(tensor))

    def axes(self, tensor: Tensor) -> Axes:
        """The labels of each axis; None for an axis that nothing tracks."""
        name = self._names.get(id(tensor))
        if name is not None:
            self.used.add(name)
            return self.params[name]
        found = self._axes.get(tensor)
        return found if found is not None else [None] * tensor.dim()

    def put(self, tensor: Tensor, axes: Axes) -> None:
        """Remember the labels of a result."""
        if id(tensor) not in self._names:
            self._axes[tensor] = axes

    def layer(self) -> str:
        """The module that is running."""
        return self.stack[-1]

    def running(self) -> nn.Module:
        """The module that is running, itself."""
        return self.module.get_submodule(self.stack[-1])

    def pin(self, ids: Ids | None, why: str) -> None:
        """Pin labels, naming the module that is running."""
        if ids is not None:
            self.labels.pin(ids, f"{self.layer() or 'the network'}: {why}")

    def meet(
        self, one: Ids | None, two: Ids | None, why: str = "meets an axis that cannot shrink"
    ) -> Ids | None:
        """Two axes of the same length meet: unify them, or pin the one when the other is fixed."""
        if one is None or two is None:
            self.pin(one if two is None else two, why)
            return None
        if len(one) != len(two):
            self.pin(one, why)
            self.pin(two, why)
            return None
        self.labels.unify(one, two, f"{self.layer()}: two readings of one axis meet here")
        return one

    def bind(self, value: int, ids: Ids | None) -> None:
        """The forward wrote `value` where an axis with these labels has its length."""
        if ids is None or len(ids) != int(value):
            return
        if not isinstance(value, Known):
            self.pin(ids, f"the forward writes the number {int(value)}")
            return
        if not value.origins:
            self.pin(ids, "the forward reads this size from a fixed axis")
            return
        if len(value.origins) != 1:
            self.pending.append((value.origins, ids))
            return
        origin = value.origins[0]
        if isinstance(origin, Attribute):
            self.bind_attribute(origin, ids)
        elif len(origin.labels) == len(ids):
            self.labels.unify(origin.labels, ids, f"{self.layer()}: a size is read from another axis")

    def bind_attribute(self, at: Attribute, ids: Ids) -> None:
        """An attribute counts (or is in ratio to) these labels; two such axes of one length go in step."""
        known = self.bound.setdefault(at, [])
        for other in known:
            if len(other) == len(ids):
                self.labels.unify(other, ids, f"{at.module}.{at.name} stands for two axes")
                return
        known.append(ids)

    def settle(self) -> None:
        """A size computed from several attributes, none of which counts an axis itself, is in ratio to the first; one
        that is an axis divided by an attribute (a stream by its heads) is that axis seen in parts.
        """
        for origins, ids in self.pending:
            extents = [o for o in origins if isinstance(o, Extent)]
            counts = [o for o in origins if isinstance(o, Attribute)]
            if len(extents) == len(counts) == 1:
                self._bind_quotient(extents[0], counts[0], ids)
            elif all(isinstance(o, Attribute) and not self.bound.get(o) for o in origins):
                first = origins[0]
                assert isinstance(first, Attribute)
                self.bind_attribute(first, ids)
        self.pending.clear()

    def _bind_quotient(self, whole: Extent, count: Attribute, ids: Ids) -> None:
        if count.value * len(ids) != len(whole.labels):
            return  # in ratio some other way: the trials decide
        parts, inside = self.labels.split(whole.labels, (count.value, len(ids)))
        if parts is not None:
            self.bind_attribute(count, parts)
        if inside is None:
            self.labels.pin(ids, f"{count.module}: its size is read from an axis that cannot shrink")
        else:
            self.labels.unify(inside, ids, f"{count.module}: a size is read from another axis")

    @contextmanager
    def running_modules(self) -> Iterator[None]:
        """Keep `stack` while modules run."""
        hooks = []
        for name, part in self.module.named_modules():
            hooks.append(part.register_forward_pre_hook(self._enter(name)))
            hooks.append(part.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(part: nn.Module, inputs: Any) -> None:
            self.stack.append(name)
            if name not in self.order:
                self.order.append(name)

        return enter

    def _leave(self, part: nn.Module, inputs: Any, output: Any) -> None:
        self.stack.pop()


class Functions(TorchFunctionMode):
    """Hands out shapes that know their axis, and remembers the arguments of the call that is under way."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        result_is_shape = name in ("size", "numel", "__len__") or (name == "__get__" and func == _SHAPE)
        before, self.trace.site = self.trace.site, (name, args, kwargs)
        try:
            result = func(*args, **kwargs)
        finally:
            self.trace.site = before
        return self._extents(args[0], result, args[1:], kwargs) if result_is_shape else result

    def _extents(self, tensor: Tensor, result: Any, rest: Any, kwargs: Any) -> Any:
        axes = self.trace.axes(tensor)
        if isinstance(result, torch.Size):
            return torch.Size([_extent(size, ids) for size, ids in zip(result, axes, strict=True)])
        if type(result) is not int or (tensor.dim() != 1 and tensor.numel() == result):
            return result  # the number of elements of more than one axis
        dim = next(integers(rest), kwargs.get("dim", 0))
        return _extent(result, axes[dim])


def _extent(size: int, ids: Ids | None) -> int:
    # A fixed axis is known too: its size is no literal, and it has no label to be in step with.
    return Known(size, (Extent(ids),)) if ids is not None else Known(size, ())


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the rule of each operator to the axes of its results."""

    def __init__(self, trace: Trace, rules: Callable[[Trace, str, Any, Any, list[Tensor]], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.rules = trace, rules

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        trace, name = self.trace, func._schema.name.removeprefix("aten::")
        before = [list(trace.axes(leaf)) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        try:
            self.rules(trace, name, args, kwargs, outs)
        except Exception as err:  # an operator used as no rule foresaw: its axes stay as they are
            self._leave_alone(name, (args, kwargs), outs, err)
        after = [list(trace.axes(out)) for out in outs]
        trace.history.append(Operation(name, before, after, [out.stride() for out in outs]))
        return result

    def _leave_alone(self, name: str, given: Any, outs: list[Tensor], err: Exception) -> None:
        for leaf in (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)):
            for ids in self.trace.axes(leaf):
                self.trace.pin(ids, f"{name} is not followed here ({type(err).__name__})")
        for out in outs:
            self.trace.put(out, [None] * out.dim())


def inputs_of(example: Any) -> tuple[Any, ...]:
    """An example as positional arguments."""
    return tuple(example) if isinstance(example, tuple) else (example,)


def run(trace: Trace, example: Any, rules: Callable[[Trace, str, Any, Any, list[Tensor]], None]) -> Any:
    """Run the traced module once; its outputs are pinned."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), trace.running_modules(), Functions(trace), Operators(trace, rules):
            result = trace.module(*inputs_of(example))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for leaf in _tensors(result):
        for ids in trace.axes(leaf):
            if ids is not None:
                trace.labels.pin(ids, "the network's output")
    trace.settle()
    return result


def _tensors(value: Any) -> Iterable[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
