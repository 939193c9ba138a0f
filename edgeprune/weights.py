"""Weights from a file of the user's -> a network: by name, or by order when the user says so. Never a pickle's code.

Whatever does not fit is named: which keys, which shapes on both sides.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeprune.errors import WeightsError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict saved by torch (read with weights_only=True).

    A state dict inside a dict ("state_dict", "model" ...) and a "module." prefix are taken off. WeightsError when
    the file is neither, truncated, or would have to run code.
    """
    if not path.is_file():
        raise WeightsError(f"--weights {path}: no such file; expected safetensors or a state dict")
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else _state_dict(path)
    except SafetensorError as err:
        raise WeightsError(f"--weights {path}: a damaged safetensors file ({err}); copy it again") from err
    while isinstance(found, Mapping) and not _are_tensors(found):
        inner = next((found[w] for w in _WRAPPERS if isinstance(found.get(w), Mapping)), None)
        if inner is None:
            raise WeightsError(
                f"--weights {path}: no state dict in it; it holds {', '.join(map(str, list(found)[:5]))}"
            )
        found = inner
    if not isinstance(found, Mapping):
        raise WeightsError(f"--weights {path}: a {type(found).__name__}; expected a state dict of tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def _are_tensors(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(value, Tensor) for value in found.values())


def _state_dict(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise WeightsError(
            f"--weights {path}: holds objects, not only tensors, and reading them could run code; "
            "save the network's state_dict() instead"
        ) from err
    except (RuntimeError, EOFError, ValueError, OSError) as err:
        raise WeightsError(
            f"--weights {path}: cannot be read ({str(err).splitlines()[0][:100]}); copy it again"
        ) from err


def take(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors of today's names and shapes, all of them.

    A state dict without versions reads as one of the module's first version, which some modules then convert: MNASNet
    would widen its stem. So the versions go with the tensors.
    """
    state = OrderedDict(tensors)
    state._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    module.load_state_dict(state)


@contextmanager
def swapped(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Have other values in `module` for a while; its own when `tensors` is empty. What is changed meanwhile is lost."""
    live = {key: value.clone() for key, value in module.state_dict().items()}
    take(module, tensors or live)
    try:
        yield
    finally:
        take(module, live)


def fit_by_name(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights whose names and shapes are the network's own; WeightsError names the first that are not.

    Counters of batch-norm (num_batches_tracked) may be missing: older files have none.
    """
    own = module.state_dict()
    missing = [n for n in own if n not in weights and not n.endswith("num_batches_tracked")]
    extra = [n for n in weights if n not in own]
    shapes = [n for n in own if n in weights and own[n].shape != weights[n].shape]
    if missing or extra or shapes:
        raise WeightsError(f"{where}: {_difference(own, weights, missing, extra, shapes)}")
    take(module, {**own, **weights})


def _difference(
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    missing: list[str],
    extra: list[str],
    shapes: list[str],
) -> str:
    parts = []
    if shapes:
        first = shapes[0]
        got, want = tuple(weights[first].shape), tuple(own[first].shape)
        parts.append(f"{len(shapes)} shapes differ, first {first}: {got} in the file, {want} in the network")
    if missing:
        parts.append(f"{len(missing)} keys are missing, first {missing[0]}")
    if extra:
        parts.append(f"{len(extra)} keys are not the network's, first {extra[0]}")
    remedy = "is it the right model?"
    if missing and extra and not shapes:
        remedy = "if only the names differ, --map-by-order pairs them by order and shape"
    return f"the weights do not fit the network: {'; '.join(parts)}; {remedy}"


def fit_by_order(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> list[tuple[str, str]]:
    """Load weights whose shapes agree in order, whatever their names; returns the pairs (file's name, network's name).

    WeightsError names the first pair whose shapes differ, or the counts when they do.
    """
    own = {n: t for n, t in module.state_dict().items() if not n.endswith("num_batches_tracked")}
    given = {n: t for n, t in weights.items() if not n.endswith("num_batches_tracked")}
    for theirs, ours in zip(given, own, strict=False):
        if given[theirs].shape != own[ours].shape:
            raise WeightsError(
                f"{where}: --map-by-order: {theirs} is {tuple(given[theirs].shape)}, but {ours} in its place is "
                f"{tuple(own[ours].shape)}; the orders do not agree, so give a file with the network's own names"
            )
    if len(own) != len(given):
        raise WeightsError(
            f"{where}: --map-by-order: {len(given)} tensors in the file, {len(own)} in the network"
        )
    pairs = list(zip(given, own, strict=True))
    module.load_state_dict({ours: given[theirs] for theirs, ours in pairs}, strict=False)
    return pairs
