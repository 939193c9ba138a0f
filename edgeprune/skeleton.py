"""What a network's constructor decided: plain attributes and the shapes of its tensors; read, compared,
imposed.

Surgery changes both; a checkpoint builds the dense network, imposes them, and loads strictly. Only int,
float, bool, str, None and (nested) tuples or lists of them count as attributes, so that they are JSON and
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from edgeprune import attention
from edgeprune.errors import CheckpointError


class Pair(nn.Sequential):
    """What a layer of low rank has become: a thin layer without bias, then one that widens."""


def pair(layer: nn.Module, rank: int, *, bias: bool) -> Pair:
    """An uninitialised pair of inner width `rank` in place of a Linear or an ungrouped Conv2d."""
    if isinstance(layer, nn.Linear):
        ends: tuple[nn.Module, nn.Module] = (
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=bias),
        )
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
        how = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "padding_mode")}
        ends = (
            nn.Conv2d(layer.in_channels, rank, layer.kernel_size, bias=False, **how),  # type: ignore[arg-type]
            nn.Conv2d(rank, layer.out_channels, 1, bias=bias),
        )
    else:
        raise CheckpointError(f"{type(layer).__name__} cannot be a low-rank pair; expected Linear or Conv2d")
    return Pair(*ends).to(next(layer.parameters())).train(layer.training)


def put(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the layer called `name` is."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


def pairs(module: nn.Module) -> dict[str, list[int]]:
    """Each pair's name -> its rank and whether (1 or 0) it has a bias."""
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, Pair):
            narrow = part.get_parameter("0.weight")
            found[name] = [int(narrow.shape[0]), int(part[1].bias is not None)]
    return found


Attributes = dict[str, dict[str, Any]]
"""Dotted module name ("" is the network itself) -> attribute -> plain value (tuples as lists)."""

_SKIPPED = frozenset({"training", "call_super_init", "dump_patches", "_is_full_backward_hook"})


def attributes(module: nn.Module) -> Attributes:
    """Every plain attribute of every module; a shared module appears under its first name."""
    found: Attributes = {}
    for name, part in module.named_modules():
        plain = {k: _to_json(v) for k, v in vars(part).items() if k not in _SKIPPED and _is_plain(v)}
        if plain:
            found[name] = plain
    return found


def diff(dense: nn.Module, pruned: nn.Module) -> Attributes:
    """The attributes that differ, with the values of `pruned`; empty when nothing does."""
    before = attributes(dense)
    changed: Attributes = {}
    for name, now in attributes(pruned).items():
        then = before.get(name, {})
        values = {k: v for k, v in now.items() if k not in then or then[k] != v}
        if values:
            changed[name] = values
    return changed


def impose(module: nn.Module, attributes: Attributes, shapes: Mapping[str, Iterable[int]]) -> None:
    """Set attributes, then give every parameter and buffer that `shapes` names the shape it has there, in
    place.

    The new tensors are not initialised: they are there to be loaded into. Names in `shapes` that the module
    lacks are left to the strict load. CheckpointError names a module or attribute that the network does not
    have.
    """
    for name, values in attributes.items():
        try:
            part = module.get_submodule(name)
        except AttributeError as err:
            raise CheckpointError(
                f"attributes are stored for {name}, which the network does not have"
            ) from err
        if values.get(attention.MARK):
            attention.open_up(part)
        for key, value in values.items():
            if key not in vars(part) or not _is_plain(vars(part)[key]):
                raise CheckpointError(
                    f"{name}.{key}: a plain attribute is stored, the network has none of that name"
                )
            setattr(part, key, _like(vars(part)[key], value))
    resize(module, shapes)


def resize(module: nn.Module, shapes: Mapping[str, Iterable[int]]) -> None:
    """Give every parameter and buffer the shape that `shapes` names; dtype, device, requires_grad and ties
    stay.
    """
    made: dict[int, torch.Tensor] = {}
    old: list[torch.Tensor] = []  # kept alive, so that the ids in `made` stay theirs
    for prefix, part in module.named_modules():
        for store in (part._parameters, part._buffers):
            for leaf, tensor in store.items():
                shape = shapes.get(f"{prefix}.{leaf}" if prefix else leaf)
                if tensor is None or shape is None or tuple(shape) == tuple(tensor.shape):
                    continue
                if id(tensor) not in made:
                    old.append(tensor)
                    made[id(tensor)] = _resized(tensor, tuple(shape))
                store[leaf] = made[id(tensor)]


def _resized(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    empty = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    return (
        nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, int | float | bool | str)


def _to_json(value: Any) -> Any:
    return [_to_json(item) for item in value] if isinstance(value, tuple | list) else value


def _like(old: Any, new: Any) -> Any:
    """`new` (JSON) as the type that `old` has: lists become tuples again, a torch.Size a torch.Size."""
    if isinstance(new, list):
        items = old if isinstance(old, tuple | list) and len(old) == len(new) else [()] * len(new)
        made = [_like(o, n) for o, n in zip(items, new, strict=True)]
        if isinstance(old, list):
            return made
        return torch.Size(made) if isinstance(old, torch.Size) else tuple(made)
    return new
