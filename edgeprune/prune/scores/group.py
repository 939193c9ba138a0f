"""From the tensors of a coupling's members to one number a channel.

A member is read as a matrix with one row per index of its axis; the rows that belong to a channel are summed,
and members are reduced by mean or sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.prune.coupling import Coupling, Member

Reduce = Literal["mean", "sum"]


def rows(module: nn.Module, member: Member) -> Tensor:
    """A member's tensor as (indices on its axis, rest), float64, detached.

    Row i of the "in" axis of a grouped convolution is what its group reads from input channel i.
    """
    weight = tensor(module, member).detach().double()
    layer = module.get_submodule(member.tensor.rpartition(".")[0])
    groups = int(layer.groups) if isinstance(layer, nn.modules.conv._ConvNd) else 1
    if groups > 1 and member.axis == "in" and weight.ndim > 2 and member.dim == 1:
        parts = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).transpose(1, 2)
        return parts.reshape(groups * weight.shape[1], -1)
    return weight.movedim(member.dim, 0).flatten(1) if weight.ndim > 1 else weight[:, None]


def tensor(module: nn.Module, member: Member) -> Tensor:
    """The parameter or buffer that a member speaks of."""
    owner, _, name = member.tensor.rpartition(".")
    found = getattr(module.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found


def gather(values: Tensor, member: Member) -> Tensor:
    """(indices,) -> (C,): the sum over the indices that belong to each channel."""
    owner = torch.tensor([c for c, s in enumerate(member.slices) for _ in s], dtype=torch.long)
    index = torch.tensor([i for s in member.slices for i in s], dtype=torch.long)
    out = torch.zeros(len(member.slices), dtype=values.dtype)
    return out.index_add_(0, owner, values.cpu()[index])


def weights(module: nn.Module, coupling: Coupling) -> list[Member]:
    """Members whose tensor is a weight with two axes or more: where a channel is made or read."""
    return [m for m in coupling.members if m.tensor and tensor(module, m).ndim > 1 and _is_layer(module, m)]


def _is_layer(module: nn.Module, member: Member) -> bool:
    layer = module.get_submodule(member.tensor.rpartition(".")[0])
    return member.tensor.endswith("weight") and not isinstance(layer, nn.LayerNorm)


def gains(module: nn.Module, coupling: Coupling) -> list[Member]:
    """Members that are the gain of a norm: one number an index."""
    one = [m for m in coupling.members if m.axis == "out" and m.tensor.endswith(".weight")]
    return [m for m in one if tensor(module, m).ndim == 1 and not _is_slope(module, m)]


def _is_slope(module: nn.Module, member: Member) -> bool:
    return isinstance(module.get_submodule(member.tensor.rpartition(".")[0]), nn.PReLU)


def reduced(parts: Iterable[Tensor], how: Reduce) -> Tensor | None:
    """Members' (C,) values as one; None when there are none."""
    stacked = list(parts)
    if how not in ("mean", "sum"):
        raise UsageError(f"no reduction over members is called {how!r}: the choices are mean, sum")
    if not stacked:
        return None
    whole = torch.stack(stacked)
    return whole.mean(0) if how == "mean" else whole.sum(0)
