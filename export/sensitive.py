"""Which layers of a quantised graph do most harm, and the graph with those back in float."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx

from edgeprune.export import fp16, ranges, walk
from edgeprune.export.parity import Array

PIXELS = 8 * 224 * 224  # of all images together: every layer runs them once


def leave(model: onnx.ModelProto, reference: onnx.ModelProto, layers: Iterable[str]) -> onnx.ModelProto:
    """A copy of the Q/DQ graph `model` in which `layers` (names of Conv, Gemm, MatMul, Add) read float again.

    reference: the float graph that `model` was made from: weights come from there.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    maker = {o: n for n in made.graph.node for o in n.output}
    held = {t.name for t in made.graph.initializer}
    twins = {n.name: n for n in reference.graph.node}
    wanted = set(layers)
    for node in made.graph.node:
        if node.name not in wanted:
            continue
        for i, name in enumerate(node.input):
            pair = maker.get(name)
            if pair is None or pair.op_type != "DequantizeLinear":
                continue
            if pair.input[0] in held:
                node.input[i] = twins[node.name].input[i]
                walk.replace(made, node.input[i], walk.constant(reference, node.input[i]))
            else:
                node.input[i] = maker[pair.input[0]].input[0]
    fp16.drop_dead(made)
    return made


def errors(
    model: onnx.ModelProto, reference: onnx.ModelProto, layers: Sequence[str], images: Sequence[Array]
) -> dict[str, float]:
    """For each layer, alone in int8: root mean square change of the outputs on a few images, over their own."""
    entry = reference.graph.input[0]
    together = np.concatenate(list(images))
    count = min(64, max(8, PIXELS // int(np.prod(together.shape[2:]))))
    spread = together[:: -(-len(together) // count)]
    pieces = ranges.pieces([spread], entry.type.tensor_type.shape.dim[0].dim_value or "batch")

    def outputs(graph: onnx.ModelProto) -> Array:
        run = walk.session(graph)
        rows = [run.run(None, {entry.name: piece})[0].astype(np.float64) for piece in pieces]
        return np.concatenate(rows)

    expected = outputs(reference)
    scale = float(np.sqrt(np.square(expected).mean())) or 1.0

    def error(layer: str) -> float:
        alone = leave(model, reference, [name for name in layers if name != layer])
        return float(np.sqrt(np.square(outputs(alone) - expected).mean())) / scale

    return {layer: error(layer) for layer in layers}
