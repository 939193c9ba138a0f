"""An ONNX file from anywhere -> a float32 graph that may be lowered, or one line on what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeprune.errors import BrokenModel, DataError, MissingHere, ModelError, ParityFailed, UsageError
from edgeprune.export.profile import Profile

OLDEST = 13  # QuantizeLinear has a scale a channel from here on
_SCOPES = "pkg.torch.onnx.name_scopes"
_DOMAINS = ("", "ai.onnx")


def read(path: Path) -> onnx.ModelProto:
    """The float32 graph at `path`: ModelError when it is fp16 or quantised already; else as `whole`."""
    model = whole(path)
    if any(n.op_type == "QuantizeLinear" for n in model.graph.node):
        raise ModelError(f"{path}: is quantised already; give the float32 file")
    if any(t.data_type == onnx.TensorProto.FLOAT16 and t.dims for t in model.graph.initializer):
        raise ModelError(f"{path}: is fp16 already; give the float32 file")
    return model


def whole(path: Path, *, foreign: bool = False) -> onnx.ModelProto:
    """The graph at `path`, of any precision.

    foreign: operators that are not known here are left to whoever runs the graph. BrokenModel when it is truncated or
    no ONNX; MissingHere when an operator or opset is not known here; ParityFailed when a weight is not a number.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an ONNX file")
    try:
        model = onnx.load(path)
    except Exception as err:
        raise _broken(path, err) from err
    if not model.graph.node:
        raise BrokenModel(f"{path}: not a whole ONNX file (it has no nodes); export it again")
    _opset(path, model, 1 if foreign else OLDEST)
    if not foreign:
        _operators(path, model)
        try:
            onnx.checker.check_model(model)
        except Exception as err:
            raise _broken(path, err) from err
    _numbers(path, model)
    return model


def check_batch(path: Path, model: onnx.ModelProto, wanted: Profile) -> None:
    """UsageError when the graph's batch is fixed and is not the one that is wanted; one image is always allowed."""
    fixed = _fixed_batch(model)
    if fixed is not None and str(wanted) not in ("1", str(fixed)):
        raise UsageError(
            f"--batch {wanted}: the batch of {path.name} is fixed at {fixed}; "
            f"export it again from its checkpoint with --batch {wanted}, or leave that out"
        )


def _fixed_batch(model: onnx.ModelProto) -> int | None:
    held = {t.name for t in model.graph.initializer}
    entry = next((i for i in model.graph.input if i.name not in held), None)
    if entry is None:
        return None
    sizes = entry.type.tensor_type.shape.dim
    return sizes[0].dim_value or None if sizes else None


def _broken(path: Path, err: Exception) -> BrokenModel:
    why = (str(err).strip().splitlines() or [type(err).__name__])[0][:160]
    return BrokenModel(f"{path}: not a whole ONNX file ({why}); export it again")


def _opset(path: Path, model: onnx.ModelProto, oldest: int) -> None:
    found = opset(model)
    newest = onnx.defs.onnx_opset_version()
    if found < oldest:
        raise MissingHere(f"{path}: opset {found}; expected {oldest} or newer: export it with --opset 20")
    if found > newest:
        raise MissingHere(
            f"{path}: opset {found}; onnx {onnx.__version__} here knows up to {newest}: export it with --opset 20"
        )


def opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators; 0 when the graph uses none."""
    return next((o.version for o in model.opset_import if o.domain in _DOMAINS), 0)


def _operators(path: Path, model: onnx.ModelProto) -> None:
    """Name the first operator that nobody here knows, and the layer of the network that it came from."""
    own = {(f.domain, f.name) for f in model.functions}
    for node in model.graph.node:
        domain = "" if node.domain in _DOMAINS else node.domain
        if domain == "com.microsoft" or (domain, node.op_type) in own or onnx.defs.has(node.op_type, domain):
            continue
        word = f"{domain}.{node.op_type}" if domain else node.op_type
        raise MissingHere(
            f"{path}: operator {word} of {layer(node)} is not known here; "
            "replace that layer in the network, or leave it out of the export"
        )


def layer(node: onnx.NodeProto) -> str:
    """The network's name of what became this node, else the node's own."""
    scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "")
    inside = [part.strip(" '\"") for part in scopes.strip("[]").split(",") if part.strip(" '\"")]
    names = inside[:-1] or inside  # the last is the operation itself
    return f"layer {names[-1]}" if names else f"node {node.name or node.output[0]}"


def _numbers(path: Path, model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type not in (
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.FLOAT16,
            onnx.TensorProto.DOUBLE,
        ):
            continue
        require_numbers(path, tensor.name, numpy_helper.to_array(tensor))


def require_numbers(path: Path, name: str, weight: NDArray[Any]) -> None:
    """ParityFailed when a weight holds NaN or infinity; an infinite scalar is a bound (Clip, a mask) and may stay."""
    bad = int((~np.isfinite(weight)).sum())
    if bad and (weight.size > 1 or np.isnan(weight).any()):
        raise ParityFailed(
            f"{path}: weight {name} holds NaN or infinity in {bad} of {weight.size} numbers, so nothing can be "
            "proved equal to it; take an earlier checkpoint"
        )
