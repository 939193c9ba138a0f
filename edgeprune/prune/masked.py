"""The dense network with channels silenced: what a cut network must compute.

Silenced channels are zero after every operator, and operators that look across channels (norms, means,
softmax) are given the others only. It needs nothing from surgery, so that the two can be compared.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from edgeprune.prune.labels import Ids
from edgeprune.prune.tracing import Axes, Operation, Trace, inputs_of

_ACROSS = frozenset(
    [
        "mean",
        "var",
        "std",
        "var_mean",
        "std_mean",
        "amax",
        "amin",
        "max",
        "min",
        "prod",
        "_softmax",
        "_log_softmax",
        "_safe_softmax",
        "native_layer_norm",
        "native_group_norm",
        "native_batch_norm",
        "convolution",
        "any",
        "all",
    ]
)
_VIEWS = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "expand",
        "select",
        "unbind",
        "slice",
        "split",
        "split_with_sizes",
        "alias",
        "detach",
        "as_strided_",
        "unfold",
    ]
)


class Masked(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replays a traced run with the dead primitives silenced."""

    def __init__(self, trace: Trace, dead: frozenset[int], length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace, self.dead = trace, dead
        self.steps = iter(trace.history[:length])
        self.masks: dict[int, Tensor | None] = {}

    def alive(self, ids: Ids | None) -> Tensor | None:
        """A boolean for each index, None when all live."""
        if ids is None:
            return None
        if id(ids) not in self.masks:
            roots = self.trace.labels.roots(ids)
            gone = [bool(self.trace.labels.resolve(int(r)) & self.dead) for r in roots]
            self.masks[id(ids)] = ~torch.tensor(gone) if any(gone) else None
        return self.masks[id(ids)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        step = next(self.steps, None)
        if step is None or step.name != func._schema.name.removeprefix("aten::"):
            raise RuntimeError(f"the forward ran {func} where it ran {step and step.name} before")
        if step.name in _ACROSS and any(self.alive(ids) is not None for axes in step.inputs for ids in axes):
            return self._compact(step, func, args, kwargs)
        result = func(*args, **kwargs)
        if step.name in _VIEWS:
            return result
        outs = iter(step.outputs)
        return tree_map(
            lambda leaf: self._silence(leaf, next(outs)) if isinstance(leaf, Tensor) else leaf, result
        )

    def _silence(self, tensor: Tensor, axes: Axes) -> Tensor:
        """In place, because what the forward does next (a view or a copy) may depend on the strides."""
        for dim, ids in enumerate(axes):
            alive = self.alive(ids)
            if alive is not None and tensor.dim() == len(axes):
                shape = [-1 if n == dim else 1 for n in range(len(axes))]
                tensor.masked_fill_(~alive.to(tensor.device).view(shape), 0)
        return tensor

    def _compact(self, step: Operation, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on what is alive, and spread its results again."""
        axes = iter(step.inputs)
        before = [leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        args, kwargs = tree_map(
            lambda leaf: self._select(leaf, next(axes)) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
        )
        args = _sizes(step, list(args), self._groups(step, args, before))
        outs = iter(zip(step.outputs, step.strides, strict=True))
        return tree_map(
            lambda leaf: self._spread(leaf, *next(outs)) if isinstance(leaf, Tensor) else leaf,
            func(*args, **kwargs),
        )

    def _groups(self, step: Operation, args: Any, before: list[torch.Size]) -> int:
        """How many groups a grouped operator still has."""
        groups = (
            int(args[8])
            if step.name == "convolution"
            else int(args[6])
            if step.name == "native_group_norm"
            else 1
        )
        alive = self.alive(step.inputs[0][1]) if groups > 1 else None
        return int(alive.view(groups, -1).any(1).sum()) if alive is not None else groups

    def _select(self, tensor: Tensor, axes: Axes) -> Tensor:
        for dim, ids in enumerate(axes):
            alive = self.alive(ids)
            if alive is not None:
                tensor = tensor.index_select(dim, alive.nonzero().flatten().to(tensor.device))
        return tensor

    def _spread(self, tensor: Tensor, axes: Axes, strides: tuple[int, ...]) -> Tensor:
        """Into zeros of the full shape, with the strides of the first run: what the forward does next may
        depend on them.
        """
        alive = [self.alive(ids) if dim < tensor.dim() else None for dim, ids in enumerate(axes)]
        short = [a is not None and tensor.shape[dim] == int(a.sum()) for dim, a in enumerate(alive)]
        if not any(short):
            return tensor
        shape = [
            len(ids) if cut and ids is not None else size
            for size, ids, cut in zip(tensor.shape, axes, short, strict=True)
        ]
        whole = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device).zero_()
        index = [
            a.nonzero().flatten() if cut and a is not None else torch.arange(size)
            for a, cut, size in zip(alive, short, shape, strict=True)
        ]
        whole[torch.meshgrid(*index, indexing="ij")] = tensor
        return whole


def _sizes(step: Operation, args: list[Any], groups: int) -> list[Any]:
    if step.name == "native_layer_norm":
        count = len(args[1])
        args[1] = list(args[0].shape[-count:])
    elif step.name == "native_group_norm":
        x = args[0]
        args[3:7] = [x.shape[0], x.shape[1], int(np.prod(x.shape[2:])), groups]
    elif step.name == "convolution":
        args[8] = groups
    return args


def run(
    trace: Trace, dead: frozenset[int], example: Any, length: int, dtype: torch.dtype = torch.float32
) -> Any:
    """The outputs of the traced network with those primitives silenced; `length` operators make one run."""
    module = trace.module if dtype == torch.float32 else copy.deepcopy(trace.module).to(dtype)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), Masked(trace, dead, length):
            return module(*inputs_of(example))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
