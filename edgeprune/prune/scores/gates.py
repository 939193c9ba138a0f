"""Gates of one, multiplied on each coupling's channels where they are read.

What it must satisfy: setting a coupling's gate for channel c to 0 removes c exactly as surgery does (norms
over the channel axis excepted, which then see one channel less), and each image has gates of its own, so one
backward pass gives every image's derivative. Channels are gated at the input of every layer that reads them,
with one gate for all. A layer whose forward is bypassed (its weight used by a function) cannot be gated: it is not
among those that were `reached`, and `slopes` then looks at the weights that make the channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.prune import readers
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.readers import Read


@dataclass
class Gates:
    """The gates of one forward pass, and what passed them.

    values: {root: (B, C) ones that require a gradient}; only couplings that were really read. seen: {root:
    (B, C) sum of |x|^power of what was read, over positions and readers}. reached: (layer, root) of each gate that
    was multiplied.
    """

    images: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    reached: set[tuple[str, str]] = field(default_factory=set)
    power: int = 2

    def start(self, images: Tensor) -> None:
        """Forget the last pass; call before each forward."""
        self.images = len(images)
        self.values, self.seen, self.reached = {}, {}, set()

    def of(self, root: str, width: int, like: Tensor) -> Tensor:
        """The gate of a coupling in this pass."""
        if root not in self.values:
            gate = torch.ones(self.images, width, dtype=like.dtype, device=like.device, requires_grad=True)
            self.values[root] = gate
        return self.values[root]


@contextmanager
def gated(module: nn.Module, couplings: Couplings, power: int = 2) -> Iterator[Gates]:
    """Put gates before every layer that reads a coupling; taken away on leaving. Evaluation mode inside, and frozen
    weights have gradients, too: `slopes` may need them.
    """
    gates = Gates(power=power)
    handles = []
    modes = [(m, m.training) for m in module.modules()]
    frozen = [p for p in module.parameters() if p.is_floating_point() and not p.requires_grad]
    for name, reads in readers.by_layer(couplings).items():
        hook = _Hook(gates, name, reads)
        handles.append(module.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
    module.eval()
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield gates
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for handle in handles:
            handle.remove()
        for m, mode in modes:
            m.training = mode


class _Hook:
    """Multiply a layer's input by the gates of the couplings it reads."""

    def __init__(self, gates: Gates, name: str, reads: list[Read]) -> None:
        self.gates, self.name, self.reads = gates, name, reads

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = readers.input_of(layer, args, kwargs)
        if x is None:
            return args, kwargs
        axis = readers.channel_axis(layer, x)
        fitting = [read for read in self.reads if read.fits(x, axis)]
        factors = [(read, self.gates.of(read.root, read.width, x)) for read in fitting]
        self.gates.reached |= {(self.name, read.root) for read in fitting}
        if not x.shape[0] % self.gates.images:
            self._see(x, axis, fitting)
        return readers.instead(args, kwargs, x, readers.multiplied(x, axis, self.gates.images, factors))

    def _see(self, x: Tensor, axis: int, reads: list[Read]) -> None:
        with torch.no_grad():
            size = x.detach().abs() if self.gates.power == 1 else x.detach().square()
            size = size.movedim(axis, 1).flatten(2).sum(2) if x.ndim > 2 else size
            each = size.reshape(self.gates.images, -1, x.shape[axis]).sum(1)
            for read in reads:
                nothing = torch.zeros(self.gates.images, read.width, dtype=x.dtype, device=x.device)
                seen = self.gates.seen.setdefault(read.root, nothing)
                seen.index_add_(1, read.owner.to(x.device), each[:, read.index.to(x.device)])
