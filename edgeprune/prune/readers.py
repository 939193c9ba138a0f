"""The layers that read a coupling's channels, and factors on what they read: how masks and gates reach a network.

What it must satisfy: a factor of 0 on a channel removes it exactly as surgery does (norms over the channel axis
excepted), and gradients reach the factors. A layer whose forward is bypassed (its weight used by a function) is not
reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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


def input_of(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The one tensor that a layer reads its channels from; None where that is not known.

    An attention may take its queries from one tensor and its keys from another; a layer of a foreign kind may read any
    axis.
    """
    given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    if isinstance(layer, nn.MultiheadAttention):
        read = [*args[:3], *(kwargs[k] for k in ("query", "key", "value") if k in kwargs)]
        return given[0] if len(read) == 3 and all(one is given[0] for one in read) else None
    return given[0] if given and isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) else None


def instead(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], old: Tensor, new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer with one tensor in the place of another, wherever it stands."""
    return tuple(new if v is old else v for v in args), {k: new if v is old else v for k, v in kwargs.items()}


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
