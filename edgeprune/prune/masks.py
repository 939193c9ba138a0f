"""Masks on the channels of couplings while a network trains, and the nearest legal choice of channels to a mask.

What it must satisfy: a mask of 0 on a channel removes it exactly as surgery does (norms over the channel axis
excepted), and gradients reach the mask. Channels are multiplied where they are read, with one mask for all readers, as
gates are (`edgeprune.prune.scores.gates`); here the network stays in the mode that it is in, and masks are whatever
the caller makes of each forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.prune.coupling import Coupling, Couplings, Member
from edgeprune.prune.ladder import Rules, ladder

Values = Mapping[str, Tensor]


class Layout:
    """The channels of all couplings that can be cut, side by side in one vector of `size` numbers."""

    def __init__(self, couplings: Couplings) -> None:
        self.couplings = tuple(couplings)
        self.places: dict[str, slice] = {}
        self.size = 0
        for one in self.couplings:
            self.places[one.root] = slice(self.size, self.size + one.width)
            self.size += one.width

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """(..., size) -> root -> (..., C)."""
        return {root: flat[..., place] for root, place in self.places.items()}

    def join(self, values: Values) -> Tensor:
        """root -> (C,) to one vector (size,)."""
        return torch.cat([values[root] for root in self.places]) if self.places else torch.zeros(0)


def project(layout: Layout, flat: Tensor, keep: Mapping[str, int]) -> Tensor:
    """The 0/1 vector (size,) nearest to `flat` (size,) with `keep[root]` ones in each coupling; bool.

    ||z - a||^2 over binary z with k ones is least where z marks the k largest of a: with z_i^2 = z_i it is a constant
    - 2 sum z_i a_i + k. Channels that go in units or sections are marked together, by their mean. Among equals the
    channel with the lower index stays.
    """
    chosen = torch.zeros(layout.size, dtype=torch.bool)
    values = flat.detach().double().cpu()
    for one in layout.couplings:
        order = ladder(one, values[layout.places[one.root]], Rules(multiple=1, floor=0.0))
        start = layout.places[one.root].start
        chosen[[start + channel for channel in order.keep(keep[one.root])]] = True
    return chosen.to(flat.device)


@contextmanager
def masked(module: nn.Module, couplings: Couplings, values: Callable[[int, bool], Values]) -> Iterator[None]:
    """Multiply the couplings' channels by masks inside the block, in every forward pass of `module`.

    values(images, training): called once at the start of each pass with its number of images N and the network's mode;
    root -> (C,) or (N, C), the latter with a mask for each image. A layer whose forward is bypassed is not reached, as
    with gates.
    """
    now: dict[str, Tensor] = {}
    count = [0]

    def begin(entered: nn.Module, args: tuple[Any, ...]) -> None:
        count[0] = len(args[0])
        now.clear()
        now.update(values(count[0], entered.training))

    readers: dict[str, list[tuple[Coupling, Member]]] = {}
    for coupling in couplings:
        for member in coupling.members:
            if member.axis == "in":
                readers.setdefault(member.tensor.rpartition(".")[0], []).append((coupling, member))
    handles = [module.register_forward_pre_hook(begin)]
    for name, pairs in readers.items():
        handles.append(module.get_submodule(name).register_forward_pre_hook(_Reader(pairs, now, count)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Reader:
    """Multiply a layer's input by the masks of the couplings it reads."""

    def __init__(
        self, pairs: list[tuple[Coupling, Member]], now: dict[str, Tensor], count: list[int]
    ) -> None:
        self.now, self.count = now, count
        self.pairs = [
            (
                coupling.root,
                torch.tensor([i for s in member.slices for i in s]),
                torch.tensor([c for c, s in enumerate(member.slices) for _ in s]),
            )
            for coupling, member in pairs
        ]

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        first = isinstance(layer, nn.Conv1d) or (isinstance(layer, nn.modules.conv._ConvNd) and x.ndim > 3)
        axis = 1 if first else x.ndim - 1
        whole = torch.ones(1, x.shape[axis], dtype=x.dtype, device=x.device)
        for root, index, owner in self.pairs:
            if not len(index) or int(index.max()) >= x.shape[axis]:
                continue  # not the axis that this input has: the layer is used in another way
            mask = self.now[root].to(x).reshape(-1, self.now[root].shape[-1])[:, owner.to(x.device)]
            whole = whole.expand(max(len(whole), len(mask)), -1)
            whole = whole.index_copy(1, index.to(x.device), mask.expand(len(whole), -1))
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        if (
            len(whole) > 1 and x.shape[0] % self.count[0]
        ):  # images are mixed on the first axis: one mask for all
            whole = whole.mean(0, keepdim=True)
        if len(whole) > 1:  # windows are cut image by image
            shape[0] = x.shape[0]
            whole = whole.repeat_interleave(x.shape[0] // self.count[0], 0)
        return (x * whole.reshape(shape), *args[1:])
