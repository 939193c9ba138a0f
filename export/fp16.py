"""A float32 ONNX graph -> a typed one in float16, with what float16 cannot hold left in float32.

Norms, softmax and sums of squares stay float32 always. So does every node that touches a tensor which comes
near 65504 on the user's images: the ranges are measured on the float32 graph. The conversion itself is ONNX
Runtime's; ours are the choice of nodes and the removal of float16 between two nodes that both stay float32,
where the value would overflow on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from edgeprune.errors import ModelError, missing_package
from edgeprune.export import ranges
from edgeprune.export.parity import Array

LIMIT = 65504 / 2  # half the largest float16: images not seen here may reach further
KEPT = (
    "BatchNormalization",
    "Exp",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Pow",
    "RMSNormalization",
    "ReduceL2",
    "ReduceSumSquare",
    "Softmax",
)


def convert(
    model: onnx.ModelProto, images: Sequence[Array], folder: Path, threads: int = 0
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The float16 graph (input and output stay float32), and which nodes stayed float32 and why."""
    try:
        from onnxruntime.transformers import float16
    except ImportError as err:
        raise missing_package("onnxruntime", "cpu", "--precision fp16") from err
    given = onnx.ModelProto()
    given.CopyFrom(model)
    ranges.name_nodes(given)
    top = ranges.record(given, images, folder, threads)
    over = ranges.overflowing(given, top, LIMIT)
    kept_types = {*float16.DEFAULT_OP_BLOCK_LIST, *KEPT}
    blocked = {n.name for n in given.graph.node if n.op_type in kept_types} | set(over)
    try:
        made = float16.convert_float_to_float16(
            given,
            keep_io_types=True,
            op_block_list=sorted(kept_types),
            node_block_list=sorted(over),
        )
    except Exception as err:
        raise ModelError(f"not converted to float16: {str(err).strip().splitlines()[0][:200]}") from err
    _once(made)
    ranges.order(made)
    _join(made, blocked)
    check(made)
    halves = sum(t.data_type == TensorProto.FLOAT16 for t in made.graph.initializer)
    return made, {
        "nodes": len(model.graph.node),
        "kept_fp32": len(blocked),
        "overflowing": over,
        "limit": LIMIT,
        "fp16_initializers": halves,
        "largest_activation": max(top.values(), default=0.0),
    }


def _once(model: onnx.ModelProto) -> None:
    """Drop repeated casts, in place: a weight that several float32 nodes share gets one of the same name for each."""
    made: set[str] = set()
    kept = []
    for node in model.graph.node:
        if node.op_type != "Cast" or node.output[0] not in made:
            kept.append(node)
        made.update(node.output)
    if len(kept) < len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(kept)


def _join(model: onnx.ModelProto, blocked: set[str]) -> None:
    """Bypass float32 -> float16 -> float32 behind nodes that stayed float32, in place; dead casts go."""
    maker = {o: n for n in model.graph.node for o in n.output}
    inputs = {i.name for i in model.graph.input}
    same: dict[str, str] = {}
    for node in model.graph.node:
        half = maker.get(node.input[0]) if _cast(node) == TensorProto.FLOAT else None
        if half is not None and _cast(half) == TensorProto.FLOAT16:
            source = maker.get(half.input[0])
            if half.input[0] in inputs or (source is not None and source.name in blocked):
                same[node.output[0]] = half.input[0]
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
    drop_dead(model)


def _cast(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "to"), 0) if node.op_type == "Cast" else 0


def drop_dead(model: onnx.ModelProto) -> None:
    """Remove Cast, QuantizeLinear and DequantizeLinear whose result nothing reads, in place."""
    graph = model.graph
    while True:
        read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
        dead = [
            n
            for n in graph.node
            if n.op_type in ("Cast", "QuantizeLinear", "DequantizeLinear") and not set(n.output) & read
        ]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    kept = [t for t in graph.initializer if t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def check(model: onnx.ModelProto) -> None:
    """ModelError when the graph is not valid ONNX."""
    try:
        onnx.checker.check_model(model)
    except Exception as err:
        raise ModelError(
            f"the converted graph is not valid: {str(err).strip().splitlines()[0][:200]}"
        ) from err
