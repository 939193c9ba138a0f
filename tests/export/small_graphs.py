"""Small ONNX graphs of the tests: made from arrays, so that they need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
CLASSES = 5


def network(path: Path, *, loud: float = 1.0, batch: int | str = "batch", extra: str = "") -> Path:
    """Two convolutions with a residual addition and a head; `loud` scales inside and is undone behind.

    The head's rows are one per class of `images`, so answers have margins. extra: an operator no runtime knows.
    """
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int, scale: float = 1.0) -> TensorProto:
        drawn = rng.standard_normal(shape) * scale / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(drawn.astype(np.float32), name)

    held = [
        weight("w1", 8, 3, 3, 3, scale=loud),
        weight("w2", 8, 8, 3, 3),
        weight("w3", 8, 8, 3, 3, scale=1 / loud),
    ]
    head = np.zeros((CLASSES, 8 * SIZE * SIZE), np.float32)
    held.append(numpy_helper.from_array(head, "w4"))
    node = helper.make_node
    same: Any = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["images", "w1"], ["a"], name="first", **same),
        node("Relu", ["a"], ["b"], name="relu"),
        node("Conv", ["b", "w2"], ["c"], name="second", **same),
        node("Add", ["c", "b"], ["d"], name="skip"),
        node("Conv", ["d", "w3"], ["e"], name="third", **same),
        node("Flatten", ["e"], ["f"], name="flat"),
        node("Gemm", ["f", "w4"], ["g" if extra else "logits"], name="head", transB=1),
    ]
    if extra:
        nodes.append(node(extra, ["g"], ["logits"], name="odd_layer", domain="some.where"))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
            held,
        ),
        opset_imports=[
            helper.make_opsetid("", 20),
            *([helper.make_opsetid("some.where", 1)] if extra else []),
        ],
        ir_version=9,
    )
    _learn_head(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path)
    return path


def images(count: int = 40) -> NDArray[np.float32]:
    """(count, 3, SIZE, SIZE): five patterns under noise."""
    rng = np.random.default_rng(1)
    patterns = _patterns()[np.arange(count) % CLASSES]
    return (patterns + 0.1 * rng.standard_normal(patterns.shape)).astype(np.float32)


def _patterns() -> NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal((CLASSES, 3, SIZE, SIZE)).astype(np.float32)


def _learn_head(model: onnx.ModelProto) -> None:
    """Rows of the head: the features of the five patterns, of length one."""
    import onnxruntime

    body = onnx.ModelProto()
    body.CopyFrom(model)
    del body.graph.node[6:], body.graph.output[:]
    body.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(body.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = body.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    patterns = _patterns()
    rows = [session.run(None, {"images": np.repeat(p[None], shape or 1, 0)})[0][0] for p in patterns]
    features = np.stack(rows)
    features = 10 * features / np.square(features).sum(1, keepdims=True)
    model.graph.initializer[3].CopyFrom(numpy_helper.from_array(features.astype(np.float32), "w4"))
