"""Runs an ONNX graph layer by layer on images, so that a layer can be changed before the next one sees its output.

What a layer receives is then what it will receive in the finished graph, errors of the layers before it
included. Pieces of the graph between two layers are run by ONNX Runtime; only tensors that are still read are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeprune.errors import ModelError, missing_package
from edgeprune.export.parity import Array

Values = dict[str, list[Array]]


@dataclass
class Stop:
    """A layer that has just run: what it received and put out, one array a piece; its node is the model's own."""

    node: onnx.NodeProto
    inputs: list[Array]
    outputs: list[Array]
    again: Callable[[], list[Array]]
    """Run the layer once more, with the initialisers and inputs it has now; the next layers see that output."""


def layers(model: onnx.ModelProto, names: Sequence[str], pieces: Sequence[Array]) -> Iterator[Stop]:
    """Stop at each layer of `names`, in the graph's order.

    pieces: batches that the graph's input takes. Nodes and initialisers may be changed at a stop.
    """
    held: Values = {model.graph.input[0].name: list(pieces)}
    wanted, pending, nodes = set(names), list[onnx.NodeProto](), list(model.graph.node)
    for i, node in enumerate(nodes):
        pending.append(node)
        if node.name not in wanted:
            continue
        inner = pending[:-1]
        _run(model, inner, {name for n in nodes[i:] for name in n.input}, held)
        weights = [n for n in inner if n.output[0] in node.input[1:]]
        pending = []

        def again(node: onnx.NodeProto = node, weights: list[onnx.NodeProto] = weights) -> list[Array]:
            rest = {k: v for k, v in held.items() if k not in ours(weights)}
            held[node.output[0]] = _evaluate(model, [*weights, node], [node.output[0]], rest)[0]
            return held[node.output[0]]

        yield Stop(node, held[node.input[0]], again(), again)
        read = {name for n in nodes[i + 1 :] for name in n.input}
        for name in [n for n in held if n not in read]:
            del held[name]


def ours(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Names of what `nodes` make."""
    return {o for n in nodes for o in n.output}


def _run(model: onnx.ModelProto, nodes: list[onnx.NodeProto], read: set[str], held: Values) -> None:
    """Run `nodes` on what is held, and hold those of their outputs that are in `read`."""
    made = [o for n in nodes for o in n.output if o and o in read]
    if not made:
        return
    held |= dict(zip(made, _evaluate(model, nodes, made, held), strict=True))


def _evaluate(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], made: list[str], held: Values
) -> list[list[Array]]:
    inner = {o for n in nodes for o in n.output}
    asked = {i for n in nodes for i in n.input if i} - inner
    fixed = [t for t in model.graph.initializer if t.name in asked]
    entries = sorted(asked - {t.name for t in fixed})
    if missing := [name for name in entries if name not in held]:
        raise ModelError(f"node {nodes[0].name} reads {missing[0]}, which nothing before it makes")
    graph = helper.make_graph(
        nodes,
        "piece",
        [_typed(name, held[name][0]) for name in entries],
        [onnx.ValueInfoProto(name=name) for name in made],
        fixed,
    )
    piece = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    run = session(piece)
    count = len(next(iter(held.values())))
    rows = [run.run(made, {name: held[name][k] for name in entries}) for k in range(count)]
    return [list(column) for column in zip(*rows, strict=True)]


def _typed(name: str, value: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim
    )


def session(model: onnx.ModelProto) -> Any:
    """ONNX Runtime on Q/DQ as they are written: float arithmetic between them, no int8 kernels of this CPU."""
    try:
        import onnxruntime
    except ImportError as err:
        raise missing_package("onnxruntime", "cpu", "--precision int8") from err
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def constant(model: onnx.ModelProto, name: str) -> Array:
    """The initialiser `name`; ModelError when there is none."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return np.array(numpy_helper.to_array(tensor))
    raise ModelError(f"{name} is not an initialiser of the graph")


def replace(model: onnx.ModelProto, name: str, value: Array) -> None:
    """Give the initialiser `name` another value, in place; one that is not there is added."""
    new = numpy_helper.from_array(np.ascontiguousarray(value), name)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(new)
            return
    model.graph.initializer.append(new)
