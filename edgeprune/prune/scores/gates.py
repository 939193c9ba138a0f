"""Gates of one, multiplied on each coupling's channels where they are read.

What it must satisfy: setting a coupling's gate for channel c to 0 removes c exactly as surgery does (norms
over the channel axis excepted, which then see one channel less), and each image has gates of its own, so one
backward pass gives every image's derivative. Channels are gated at the input of every layer that reads them,
with one gate for all; a layer whose forward is bypassed (an attention's output projection used as a function)
cannot be gated, which shows as a coupling without gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.prune.coupling import Coupling, Couplings, Member


@dataclass
class Gates:
    """The gates of one forward pass, and what passed them.

    values: {root: (B, C) ones that require a gradient}; only couplings that were really read. seen: {root:
    (B, C) sum of |x|^power of what was read, over positions and readers}.
    """

    images: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    power: int = 2

    def start(self, images: Tensor) -> None:
        """Forget the last pass; call before each forward."""
        self.images = len(images)
        self.values, self.seen = {}, {}

    def of(self, root: str, width: int, like: Tensor) -> Tensor:
        """The gate of a coupling in this pass."""
        if root not in self.values:
            gate = torch.ones(self.images, width, dtype=like.dtype, device=like.device, requires_grad=True)
            self.values[root] = gate
        return self.values[root]


@contextmanager
def gated(module: nn.Module, couplings: Couplings, power: int = 2) -> Iterator[Gates]:
    """Put gates before every layer that reads a coupling; taken away on leaving. Evaluation mode inside."""
    gates = Gates(power=power)
    readers: dict[str, list[tuple[Coupling, Member]]] = {}
    for coupling in couplings:
        for member in coupling.members:
            if member.axis == "in":
                readers.setdefault(member.tensor.rpartition(".")[0], []).append((coupling, member))
    handles = []
    modes = [(m, m.training) for m in module.modules()]
    for name, pairs in readers.items():
        hook = _Hook(gates, pairs)
        handles.append(module.get_submodule(name).register_forward_pre_hook(hook))
    module.eval()
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()
        for m, mode in modes:
            m.training = mode


class _Hook:
    """Multiply a layer's input by the gates of the couplings it reads."""

    def __init__(self, gates: Gates, pairs: list[tuple[Coupling, Member]]) -> None:
        self.gates, self.pairs = gates, pairs

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) and x.ndim > 3 else x.ndim - 1
        if isinstance(layer, nn.Conv1d):
            axis = 1
        whole = torch.ones(self.gates.images, x.shape[axis], dtype=x.dtype, device=x.device)
        for coupling, member in self.pairs:
            index = torch.tensor([i for s in member.slices for i in s], device=x.device)
            owner = torch.tensor([c for c, s in enumerate(member.slices) for _ in s], device=x.device)
            if len(index) and int(index.max()) >= x.shape[axis]:
                continue  # not the axis that this input has: the layer is used in another way
            gate = self.gates.of(coupling.root, coupling.width, x)
            whole = whole.index_copy(1, index, gate[:, owner])
            self._see(x, axis, index, owner, coupling)
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        if x.shape[0] % self.gates.images:  # images are mixed on the first axis: one gate for all
            factor = whole.mean(0).reshape(shape)
        else:  # windows are cut image by image
            shape[0] = x.shape[0]
            factor = whole.repeat_interleave(x.shape[0] // self.gates.images, 0).reshape(shape)
        return (x * factor, *args[1:])

    def _see(self, x: Tensor, axis: int, index: Tensor, owner: Tensor, coupling: Coupling) -> None:
        if x.shape[0] % self.gates.images:
            return
        with torch.no_grad():
            size = x.detach().abs() if self.gates.power == 1 else x.detach().square()
            size = size.movedim(axis, 1).flatten(2).sum(2) if x.ndim > 2 else size
            each = size.reshape(self.gates.images, -1, x.shape[axis]).sum(1)
            seen = self.gates.seen.setdefault(
                coupling.root, torch.zeros(self.gates.images, coupling.width, dtype=x.dtype, device=x.device)
            )
            seen.index_add_(1, owner, each[:, index])
