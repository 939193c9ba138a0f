"""How large every activation of an ONNX graph gets on the user's own images: measured, not guessed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeprune.errors import ModelError
from edgeprune.export.parity import Array
from edgeprune.runtime import ort

_MARK = "edgeprune_range_"


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, in place; those that have one keep it."""
    seen: set[str] = set()
    for i, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{i}"
        seen.add(node.name)


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its shapes and types filled in; ModelError names what is not an operator."""
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception as err:
        raise ModelError(f"the graph's types cannot be known: {str(err).splitlines()[0][:200]}") from err


def floats(model: onnx.ModelProto) -> list[str]:
    """Names of the float32 tensors that nodes of an inferred graph make, in the graph's order."""
    typed = {
        v.name: v.type.tensor_type.elem_type
        for v in (*model.graph.value_info, *model.graph.output, *model.graph.input)
    }
    return [o for n in model.graph.node for o in n.output if typed.get(o) == TensorProto.FLOAT]


def record(
    model: onnx.ModelProto, images: Iterable[Array], folder: Path, threads: int = 0
) -> dict[str, float]:
    """Largest absolute value of each float tensor over batches (n, 3, H, W), by name; inf for NaN or infinity."""
    wide = infer(model)
    names = floats(wide)
    del wide.graph.output[:]
    for i, name in enumerate(names):
        mark = f"{_MARK}{i}"
        wide.graph.node.append(helper.make_node("Abs", [name], [f"{mark}_abs"], name=f"{mark}_a"))
        wide.graph.node.append(
            helper.make_node("ReduceMax", [f"{mark}_abs"], [mark], name=f"{mark}_m", keepdims=0)
        )
        # ReduceMax passes over NaN; a sum does not.
        wide.graph.node.append(
            helper.make_node("ReduceSum", [f"{mark}_abs"], [f"{mark}_sum"], name=f"{mark}_s", keepdims=0)
        )
        for output in (mark, f"{mark}_sum"):
            wide.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    file = folder / "ranges.onnx"
    onnx.save_model(wide, file)
    top: dict[str, float] = dict.fromkeys(names, 0.0)
    with ort.open(file, threads=threads) as runner:
        for batch in pieces(images, runner.inputs[0].shape[0]):
            made = runner.infer({runner.inputs[0].name: batch})
            for i, name in enumerate(names):
                value, total = float(made[f"{_MARK}{i}"]), float(made[f"{_MARK}{i}_sum"])
                top[name] = max(top[name], value if np.isfinite(total) else np.inf)
    for batch in images:
        value = float(np.abs(batch).max()) if len(batch) else 0.0
        entry = model.graph.input[0].name
        top[entry] = max(top.get(entry, 0.0), value)
    return top


def pieces(images: Iterable[Array], batch: int | str, most: int = 8) -> list[Array]:
    """The images as batches that a graph takes: of its fixed size (the last repeats an image), or up to `most`."""
    together = np.concatenate([b for b in images if len(b)]).astype(np.float32)
    size = batch if isinstance(batch, int) else most
    made = [together[i : i + size] for i in range(0, len(together), size)]
    short = size - len(made[-1]) if isinstance(batch, int) else 0
    if short:
        made[-1] = np.concatenate([made[-1], np.repeat(made[-1][-1:], short, axis=0)])
    return [np.ascontiguousarray(b) for b in made]


def overflowing(model: onnx.ModelProto, top: Mapping[str, float], limit: float) -> dict[str, str]:
    """Nodes that touch a tensor beyond `limit`: name -> why. A weight counts as much as an activation."""
    weights = {
        t.name: float(np.abs(onnx.numpy_helper.to_array(t)).max())
        for t in model.graph.initializer
        if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 0
    }
    found = {}
    for node in model.graph.node:
        for name in (*node.output, *node.input):
            value = weights.get(name, top.get(name, 0.0))
            if not value <= limit:
                kind = "weight" if name in weights else "activation"
                found[node.name] = f"{kind} {name} reaches {value:.4g}"
                break
    return found


def order(model: onnx.ModelProto) -> None:
    """Sort the nodes so that each follows what it reads, in place and otherwise stable."""
    graph = model.graph
    known = {t.name for t in (*graph.initializer, *graph.input)} | {""}
    known |= {s.values.name for s in graph.sparse_initializer}
    waiting: Sequence[onnx.NodeProto] = list(graph.node)
    done: list[onnx.NodeProto] = []
    while waiting:
        left = []
        for node in waiting:
            if all(i in known for i in node.input):
                done.append(node)
                known.update(node.output)
            else:
                left.append(node)
        if len(left) == len(waiting):
            raise ModelError(f"node {left[0].name} reads a tensor that nothing makes")
        waiting = left
    del graph.node[:]
    graph.node.extend(done)
