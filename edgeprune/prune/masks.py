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

from edgeprune.prune import readers
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Rules, ladder
from edgeprune.prune.readers import Read

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

    def reading(reads: list[Read]) -> Callable[..., Any]:
        def multiply(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = readers.input_of(layer, args, kwargs)
            if x is None:
                return args, kwargs
            axis = readers.channel_axis(layer, x)
            fitting = [(read, now[read.root]) for read in reads if read.fits(x, axis)]
            return readers.instead(args, kwargs, x, readers.multiplied(x, axis, count[0], fitting))

        return multiply

    handles = [module.register_forward_pre_hook(begin)]
    for name, reads in readers.by_layer(couplings).items():
        layer = module.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(reading(reads), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
