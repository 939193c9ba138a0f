"""One safetensors file that rebuilds a slimmed network: no pickle is written or read, and outputs are bit-equal.

Skeleton plus leaves: the document says how to build the dense network and which attributes pruning changed; the
tensors' own shapes say the widths. A mismatch names the first differing leaf and both versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edgeprune import artifact, header, skeleton, weights
from edgeprune.errors import CheckpointError, UntrustedFactory
from edgeprune.images import Preprocess
from edgeprune.model import Network, build, is_factory


def dumps(network: Network) -> bytes:
    """The whole checkpoint as bytes.

    Tensors: the state dict, and those buffers outside it whose values are not what the constructor computes.
    """
    module = network.module
    dense = build(network.spec, network.build)
    tensors = dict(module.state_dict())
    tensors.update(_changed_buffers(dense, module))
    document = {
        "format": header.FORMAT,
        "spec": network.spec,
        "build": network.build,
        "libraries": _libraries(),
        "dense": {name: list(tensor.shape) for name, tensor in dense.state_dict().items()},
        "low_rank": skeleton.pairs(module),
        "attributes": skeleton.diff(dense, module),
        "classes": list(network.classes),
        "classifier": network.classifier,
        "preprocess": network.preprocess.to_json(),
        "history": network.history,
    }
    # Tied weights share memory, which the format refuses: each name gets a copy, and the skeleton ties them again.
    leaves = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return save(leaves, {header.KEY: json.dumps(document)})


def write(path: Path, network: Network) -> artifact.Artifact:
    """Write the checkpoint atomically and return the artefact."""
    artifact.write_atomically(path, dumps(network))
    return artifact.Artifact(path, "checkpoint", artifact.sha256(path))


def needs_trust(spec: str) -> bool:
    """Whether a checkpoint of such a network wants `--trust`: its factory is not ours."""
    return is_factory(spec) and not spec.startswith("edgeprune.")


def read(path: Path, trust: Iterable[str] = ()) -> Network:
    """Rebuild the network of a checkpoint (a file or a run folder), on the CPU and in eval mode.

    `trust` holds the factories ("package.module:function") that the user named; a file that asks for another one is
    an UntrustedFactory. CheckpointError names the first leaf that does not fit.
    """
    head = header.read(path)
    document = head.document
    spec = str(document["spec"])
    if needs_trust(spec) and spec not in set(trust):
        raise UntrustedFactory(
            f"{head.path}: wants to import {spec}, which runs code; if you trust it: --trust {spec}"
        )
    module = build(spec, document["build"])
    _check_skeleton(head, module)
    for name, (rank, bias) in document.get("low_rank", {}).items():
        skeleton.put(module, name, skeleton.pair(module.get_submodule(name), rank, bias=bool(bias)))
    skeleton.impose(module, document["attributes"], head.shapes)
    tensors = load_file(head.path)
    buffers = {name: tensors.pop(name) for name in list(tensors) if name not in module.state_dict()}
    for name, value in buffers.items():
        _set_buffer(module, name, value)
    weights.take(module, tensors)
    return Network(
        module.eval(),
        spec,
        Preprocess.from_json(document["preprocess"]),
        tuple(document["classes"]),
        str(document["classifier"]),
        dict(document["build"]),
        list(document["history"]),
    )


def _outside_state(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name not in state}


def _changed_buffers(dense: nn.Module, module: nn.Module) -> dict[str, Tensor]:
    before = _outside_state(dense)
    return {
        name: buffer
        for name, buffer in _outside_state(module).items()
        if name not in before
        or before[name].shape != buffer.shape
        or not torch.equal(before[name], buffer.cpu())
    }


def _set_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    try:
        buffers = module.get_submodule(parent)._buffers
    except AttributeError:
        buffers = {}
    if leaf not in buffers:
        raise CheckpointError(f"{name}: the file stores this tensor, and the network has none of that name")
    buffers[leaf] = value


def _check_skeleton(head: header.Header, module: nn.Module) -> None:
    now = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    then: Mapping[str, list[int]] = head.document["dense"]
    for name in [*then, *(n for n in now if n not in then)]:
        if then.get(name) != now.get(name):
            raise CheckpointError(
                f"{head.path}: {name} was {then.get(name, 'absent')} when the file was written "
                f"({_versions(head.document['libraries'])}) and is {now.get(name, 'absent')} now "
                f"({_versions(_libraries())}); install those versions, or write the checkpoint again"
            )
    paired = tuple(f"{name}." for name in head.document.get("low_rank", {}))
    lost = sorted(name for name in set(then) - set(head.shapes) if not name.startswith(paired))
    if lost:
        raise CheckpointError(f"{head.path}: {lost[0]} is missing from the file; it is damaged")


def _libraries() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("edgeprune", "torch", "torchvision", "timm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _versions(libraries: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in libraries.items())
