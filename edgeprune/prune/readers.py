"""The layers that read a coupling's channels, and factors on what they read: how masks and gates reach a network.

What it must satisfy: a factor of 0 on a channel removes it exactly as surgery does (norms over the channel axis
excepted), and gradients reach the factors. A layer whose forward is bypassed (an attention's output projection used as
a function) is not reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeprune.prune.coupling import Couplings, Member


@dataclass(frozen=True, eq=False)
class Read:
    """What one layer reads of one coupling: input `index[i]` holds channel `owner[i]`, both (n,)."""

    root: str
    width: int
    index: Tensor
    owner: Tensor

    @staticmethod
    def of(root: str, width: int, member: Member) -> Read:
        """From the "in" member of a coupling."""
        index = torch.tensor([i for s in member.slices for i in s], dtype=torch.long)
        return Read(root, width, index, torch.tensor([c for c, s in enumerate(member.slices) for _ in s]))

    def fits(self, x: Tensor, axis: int) -> bool:
        """Whether the input has such an axis; the layer may be used in another way."""
        return len(self.index) > 0 and int(self.index.max()) < x.shape[axis]


def by_layer(couplings: Couplings) -> dict[str, list[Read]]:
    """Layer -> what it reads of the couplings that can be cut."""
    found: dict[str, list[Read]] = {}
    for one in couplings:
        for member in one.members:
            if member.axis == "in":
                name = member.tensor.rpartition(".")[0]
                found.setdefault(name, []).append(Read.of(one.root, one.width, member))
    return found


def channel_axis(layer: nn.Module, x: Tensor) -> int:
    """Which axis of its input a layer reads channels from."""
    first = isinstance(layer, nn.Conv1d) or (isinstance(layer, nn.modules.conv._ConvNd) and x.ndim > 3)
    return 1 if first else x.ndim - 1


def multiplied(x: Tensor, axis: int, images: int, factors: Iterable[tuple[Read, Tensor]]) -> Tensor:
    """A layer's input, of `images` images, times the factors of each read's channels: (C,), (1, C) or (N, C)."""
    whole = torch.ones(1, x.shape[axis], dtype=x.dtype, device=x.device)
    for read, factor in factors:
        each = factor.to(x).reshape(-1, read.width)[:, read.owner.to(x.device)]
        whole = whole.expand(max(len(whole), len(each)), -1)
        whole = whole.index_copy(1, read.index.to(x.device), each.expand(len(whole), -1))
    if len(whole) > 1 and x.shape[0] % images:  # images are mixed on the first axis: one factor for all
        whole = whole.mean(0, keepdim=True)
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    if len(whole) > 1:  # windows are cut image by image
        shape[0] = x.shape[0]
        whole = whole.repeat_interleave(x.shape[0] // images, 0)
    return x * whole.reshape(shape)
