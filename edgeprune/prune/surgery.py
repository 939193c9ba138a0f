"""The one writer of structure: a plan and the couplings it speaks of -> a smaller network, in place.

The same plan on equal networks gives equal networks; an empty plan changes nothing; dtype, device,
requires_grad and ties stay; attributes that count channels (groups, num_heads, in_features, ...) are kept in
step.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune import attention, skeleton
from edgeprune.errors import PlanError, nearest
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune.coupling import Coupling, Couplings, Slot
from edgeprune.prune.lowrank import Factors


def apply(module: nn.Module, plan: PruningPlan, couplings: Couplings) -> None:
    """Cut `module` in place. `couplings` must have been found on a network of the same architecture.

    PlanError when the plan names a coupling that is not there or frozen, has another width, or breaks a unit
    or sections; nothing has been changed then.
    """
    if plan.low_rank:
        raise PlanError(
            f"{plan.low_rank[0].layer}: low-rank layers are not cut here; expected a plan with cuts only"
        )
    dead = _dead(plan, couplings)
    # The names of the tensors and attributes stay; only a forward that ties heads to the stream gives way.
    touched = {name.rpartition(":" if dim < 0 else ".")[0] for name, dim, *_ in dead}
    changes = _checked(module, dead)
    for name in touched:
        for owner in (
            name,
            name.rpartition(".")[0],
        ):  # the output projection of an attention is a layer of its own
            attention.open_up(module.get_submodule(owner))
    tensors = _tensors(module)
    attributes = [(place, value) for place, value in changes if place[1] < 0]
    for (name, dim, *_), keep in ((p, k) for p, k in changes if p[1] >= 0):
        _replace(module, tensors, name, _shortened(tensors[name], dim, keep))
    for (name, _, position, _), value in attributes:
        _set_attribute(module, name, position, value)
    if plan.cuts:
        for part in module.modules():
            _in_step(part)


def split(module: nn.Module, name: str, made: Factors) -> None:
    """Put a low-rank pair with the values of `made` where the Linear or Conv2d called `name` is."""
    layer = module.get_submodule(name)
    pair = skeleton.pair(layer, len(made.first), bias=made.bias is not None)
    values = {"0.weight": made.first, "1.weight": made.second, "1.bias": made.bias}
    with torch.no_grad():
        for key, tensor in pair.named_parameters():
            value = values[key]
            assert value is not None
            tensor.copy_(value.reshape(tensor.shape))
            tensor.requires_grad_(next(layer.parameters()).requires_grad)
    skeleton.put(module, name, pair)


Place = tuple[str, int, int | None, int]
"""The name, dim and position of a slot, and its size: an attribute may follow axes of several lengths."""


def require(plan: PruningPlan, couplings: Couplings) -> None:
    """PlanError, as `apply` raises it, when a coupling that the plan cuts is not there or does not allow it."""
    for cut in plan.cuts:
        check(_find(couplings, cut), cut)


def _dead(plan: PruningPlan, couplings: Couplings) -> dict[Place, set[int]]:
    """For each axis the indices that go."""
    require(plan, couplings)
    dead: dict[Place, set[int]] = defaultdict(set)
    for cut in plan.cuts:
        kept = set(cut.keep)
        for slot in couplings[cut.root].slots:
            dead[(slot.name, slot.dim, slot.position, slot.size)] |= gone(slot, kept)
    return dead


def gone(slot: Slot, kept: set[int]) -> set[int]:
    """The indices of an axis whose channels are all gone."""
    alive = {i for channel in kept for i in slot.slices[channel]}
    return {i for indices in slot.slices for i in indices} - alive


def check(coupling: Coupling, cut: Cut) -> None:
    """PlanError unless the cut is one that this coupling allows."""
    root, width = coupling.root, coupling.width
    if coupling.frozen is not None:
        raise PlanError(f"{root}: the plan cuts it, but it must stay whole: {coupling.frozen}")
    if cut.width != width:
        raise PlanError(f"{root}: {cut.width} channels in the plan, {width} in the network")
    unit = coupling.unit
    if unit > 1:
        runs: dict[int, int] = defaultdict(int)
        for channel in cut.keep:
            runs[channel // unit] += 1
        if any(n != unit for n in runs.values()):
            raise PlanError(f"{root}: channels go in whole runs of {unit}; the plan keeps part of a run")
    if coupling.sections > 1:
        length = width // coupling.sections
        parts: list[list[int]] = [[] for _ in range(coupling.sections)]
        for channel in cut.keep:
            parts[channel // length].append(channel % length)
        if any(p != parts[0] for p in parts):
            raise PlanError(f"{root}: each of the {coupling.sections} sections must keep the same positions")


def _find(couplings: Couplings, cut: Cut) -> Coupling:
    try:
        return couplings[cut.root]
    except KeyError:
        roots = [c.root for c in couplings.all]
        raise PlanError(
            f"{cut.root}: the plan cuts it, the network has no such coupling; {nearest(cut.root, roots)}"
        ) from None


def _checked(module: nn.Module, dead: dict[Place, set[int]]) -> list[tuple[Place, Any]]:
    """What will be done: kept indices of each axis, new values of attributes; PlanError before anything
    changes.
    """
    tensors = _tensors(module)
    changes: list[tuple[Place, Any]] = []
    values: dict[tuple[str, int | None], int] = {}
    for place, indices in dead.items():
        name, dim, position, size = place
        if len(indices) == size:
            raise PlanError(f"{name}: nothing of it would be left; keep at least one channel")
        if dim >= 0:
            found = tensors[name].shape[dim] if name in tensors else None
            if found != size:
                raise PlanError(
                    f"{name}: {size} expected along axis {dim}, {found} found; is it another architecture?"
                )
            changes.append((place, [i for i in range(size) if i not in indices]))
            continue
        said = name.replace(":", ".")
        old = _attribute(module, name, position)
        if old * (size - len(indices)) % size:
            raise PlanError(f"{said}: {old} cannot follow an axis cut from {size} to {size - len(indices)}")
        new = old * (size - len(indices)) // size
        if values.setdefault((name, position), new) != new:
            raise PlanError(f"{said}: two axes that it stands for want {values[(name, position)]} and {new}")
        changes.append((place, new))
    return changes


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, each tied name too."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _shortened(tensor: Tensor, dim: int, keep: list[int]) -> Tensor:
    with torch.no_grad():
        index = torch.tensor(keep, device=tensor.device)
        short = tensor.detach().index_select(dim, index)
        if (
            tensor.dim() == 4
            and tensor.is_contiguous(memory_format=torch.channels_last)
            and not tensor.is_contiguous()
        ):
            short = short.contiguous(memory_format=torch.channels_last)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(short, requires_grad=tensor.requires_grad)
    return short


def _replace(module: nn.Module, tensors: dict[str, Tensor], name: str, new: Tensor) -> None:
    """Put the new tensor wherever the old one was, ties included."""
    old = tensors[name]
    for other in [n for n, t in tensors.items() if t is old]:
        parent, _, leaf = other.rpartition(".")
        part = module.get_submodule(parent)
        store: dict[str, Any] = part._parameters if leaf in part._parameters else part._buffers
        store[leaf] = new
        tensors[other] = new


def _attribute(module: nn.Module, name: str, position: int | None) -> int:
    layer, _, key = name.partition(":")
    value = getattr(module.get_submodule(layer), key)
    return int(value if position is None else value[position])


def _set_attribute(module: nn.Module, name: str, position: int | None, new: int) -> None:
    layer, _, key = name.partition(":")
    part = module.get_submodule(layer)
    value = getattr(part, key)
    if position is not None:
        items = list(value)
        items[position] = new
        new = items if isinstance(value, list) else tuple(items)  # type: ignore[assignment]
    setattr(part, key, new)


def _in_step(part: nn.Module) -> None:
    """Attributes of the layers of torch.nn follow their tensors; caches of tensors are emptied."""
    weight = part._parameters.get("weight")
    vector = weight if weight is not None else part._buffers.get("running_mean")
    if isinstance(part, nn.modules.conv._ConvNd) and weight is not None:
        mine, other = weight.shape[0], weight.shape[1] * part.groups
        if part.transposed:
            mine, other = other, mine
        part.out_channels, part.in_channels = mine, other
    elif isinstance(part, nn.Linear) and weight is not None:
        part.out_features, part.in_features = weight.shape
    elif isinstance(part, nn.modules.batchnorm._NormBase) and vector is not None:
        part.num_features = vector.shape[0]
    elif isinstance(part, nn.GroupNorm) and weight is not None:
        part.num_channels = weight.shape[0]
    elif isinstance(part, nn.LayerNorm) and weight is not None:
        part.normalized_shape = tuple(weight.shape)
    elif isinstance(part, nn.MultiheadAttention):
        part.embed_dim = part.kdim = part.vdim = part.out_proj.weight.shape[0]
    elif isinstance(part, nn.PReLU) and weight is not None:
        part.num_parameters = weight.shape[0]
    for key, value in vars(part).items():
        if key not in ("_buffers", "_parameters", "_modules") and _is_cache(value):
            value.clear()


def _is_cache(value: Any) -> bool:
    return type(value) is dict and bool(value) and all(isinstance(v, Tensor) for v in value.values())
