"""Brings the mean of each output channel of a quantised graph back to the float graph's, by the biases.

Rounded weights shift means, most in depthwise convolutions, whose outputs sum few products. Empirical bias
correction, Nagel et al. 2019 (arXiv 1906.04721, section 4.2 and appendix D): layer after layer, so that each is
corrected under the inputs that corrected layers before it give. Ours: graphs in ONNX, layers left in float too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeprune.errors import ModelError
from edgeprune.export import ranges, walk
from edgeprune.export.parity import Array
from edgeprune.export.walk import Stop

LAYERS = ("Conv", "Gemm")  # a MatMul's bias is an Add behind it, which this leaves alone
PIXELS = 32 * 224 * 224  # of all images together: activations of both graphs stay in memory


def correct(
    model: onnx.ModelProto, reference: onnx.ModelProto, images: Sequence[Array], most: int = 64
) -> int:
    """Move the biases of `model` in place and return how many layers have one that moved.

    reference: the float graph that `model` was made from, its layers of the same names in the same order.
    images: batches (n, 3, H, W), of which up to `most` are used. ModelError when the layers differ.
    """
    entry = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    together = np.concatenate(list(images))
    count = max(8, min(most, PIXELS // int(np.prod(together.shape[2:]))))
    pieces = ranges.pieces([together[:: -(-len(together) // count)]], entry or "batch")
    held = {t.name for t in reference.graph.initializer}
    names = [n.name for n in reference.graph.node if n.op_type in LAYERS and n.input[1] in held]
    exact = walk.layers(reference, names, pieces)
    wanted: dict[str, NDArray[np.float64]] = {}  # branches may stand in another order in the two graphs
    moved = 0
    for made in walk.layers(model, names, pieces):
        while made.node.name not in wanted:
            stop = next(exact, None)
            if stop is None:
                there = ", ".join(wanted) or "nothing"
                raise ModelError(f"layer {made.node.name} stands where the float graph has {there}")
            wanted[stop.node.name] = _means(stop.outputs)
        moved += _move(model, made, wanted.pop(made.node.name))
    if left := [*wanted, *(stop.node.name for stop in exact)]:
        raise ModelError(f"layer {left[0]} of the float graph is not in the quantised one")
    return moved


def _move(model: onnx.ModelProto, made: Stop, wanted: NDArray[np.float64]) -> bool:
    node, gap = made.node, wanted - _means(made.outputs)
    if not gap.any() or not np.isfinite(gap).all():
        return False
    name = f"{node.name}.corrected_bias"
    has = len(node.input) > 2 and node.input[2]
    old = walk.constant(model, node.input[2]) if has else np.zeros(len(gap), np.float32)
    del node.input[2:]
    node.input.append(name)
    walk.replace(model, name, (old + gap).astype(np.float32))
    made.again()
    return True


def _means(outputs: Sequence[Array]) -> NDArray[np.float64]:
    """(C,): the mean of each channel over pieces of one size."""
    axes = tuple(i for i in range(outputs[0].ndim) if i != 1)
    return np.asarray(np.mean([o.mean(axes, dtype=np.float64) for o in outputs], axis=0))
