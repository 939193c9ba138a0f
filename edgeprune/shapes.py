"""The shape of every tensor of an ONNX graph at one batch size, without running it and without its weights.

onnx's own inference, repeated with what it cannot do itself: a `Shape` of a known tensor, and small
whole-number arithmetic on it, become constants, until nothing more is found. Exporters write such
arithmetic around each reshape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import onnx.shape_inference
from numpy.typing import NDArray
from onnx import TensorProto

from edgeprune.errors import ModelError

Shape = tuple[int, ...]
_SMALL = 4096  # bytes; shape arithmetic needs the values of constants up to here, weights only their shapes
_ARITHMETIC = "Add Ceil Div Equal Floor Less Max Min Mod Mul Neg ReduceProd Sqrt Sub Unsqueeze Where"
_MOVING = "Cast Concat Constant ConstantOfShape Expand Gather Identity Range Reshape Slice Squeeze Transpose"
_FOLDABLE = frozenset(f"{_ARITHMETIC} {_MOVING}".split())


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with names and shapes of its weights only, functions inlined: quick at any size."""
    light = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    light.graph.name = model.graph.name or "graph"
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.node.extend(model.graph.node)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL:
            light.graph.initializer.append(tensor)
            continue
        stub = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        stub.data_location = TensorProto.EXTERNAL
        stub.external_data.add(key="location", value="not-read")
    return onnx.inliner.inline_local_functions(light) if light.functions else light


def set_batch(graph: onnx.GraphProto) -> int:
    """Make a free batch 1 in place; return the batch that is fixed, or 1. ModelError when more is free."""
    weights = {t.name for t in graph.initializer}
    batches = set()
    for value in graph.input:
        if value.name in weights:
            continue
        dims = value.type.tensor_type.shape.dim
        for position, dim in enumerate(dims):
            if not dim.HasField("dim_value"):
                if position:
                    raise ModelError(
                        f"input {value.name}: dimension {position} is free; only the first may be"
                    )
                dim.dim_value = 1
        if len(dims):
            batches.add(dims[0].dim_value)
    for value in graph.output:  # its free batch would hide what inference finds
        value.type.tensor_type.ClearField("shape")
    return batches.pop() if len(batches) == 1 else 1


def infer(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes by tensor name, those that depend on values left out. Folds constants into `model`.

    ModelError when the shapes of the graph contradict each other.
    """
    while True:
        graph = _inferred(model, strict=False).graph
        shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            shape = _static(value)
            if shape is not None:
                shapes.setdefault(value.name, shape)
        if all(o in shapes for n in model.graph.node for o in n.output if o) or not _fold(model, shapes):
            return shapes


def contradiction(model: onnx.ModelProto) -> str:
    """What makes a graph's shapes impossible, or nothing when they are only unknown."""
    try:
        _inferred(model, strict=True)
    except ModelError as err:
        return str(err)
    return ""


def _inferred(model: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=strict, data_prop=True)
    except Exception as err:  # onnx raises its own class, which is a RuntimeError in some releases
        line = " ".join(str(err).split())[:200]
        raise ModelError(f"the graph's shapes do not fit: {line}") from err


def _fold(model: onnx.ModelProto, shapes: dict[str, Shape]) -> int:
    """Turn nodes whose value is known into initialisers; return how many."""
    known: dict[str, Any] = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in model.graph.initializer
        if t.data_location != TensorProto.EXTERNAL and t.ByteSize() <= _SMALL
    }
    kept, folded = [], 0
    for node in model.graph.node:
        value = _value(node, known, shapes)
        if value is None or value.nbytes > _SMALL:
            kept.append(node)
            continue
        known[node.output[0]] = value
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
        folded += 1
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return folded


def _value(node: onnx.NodeProto, known: dict[str, Any], shapes: dict[str, Shape]) -> NDArray[Any] | None:
    if node.op_type == "Shape" and node.input[0] in shapes:
        limits = {a.name: a.i for a in node.attribute}
        return np.asarray(shapes[node.input[0]][limits.get("start", 0) : limits.get("end")], np.int64)
    if node.op_type not in _FOLDABLE or not all(name in known for name in node.input if name):
        return None
    try:
        feeds: dict[Any, Any] = {name: known[name] for name in node.input if name}
        made: Any = onnx.reference.ReferenceEvaluator(node).run(None, feeds)
    except Exception:  # what the reference cannot compute stays unknown; count names the node that needed it
        return None
    return np.asarray(made[0]) if len(made) == 1 else None


def _static(value: onnx.ValueInfoProto) -> Shape | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return tuple(d.dim_value for d in tensor.shape.dim)
