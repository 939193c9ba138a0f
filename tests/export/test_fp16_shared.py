"""Norms that share a weight with each other and with a node in float16: exporters join equal ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprune.export import fp16


def test_norms_that_share_a_weight_convert(tmp_path: Path) -> None:
    ones = numpy_helper.from_array(np.ones(4, np.float32), "ones")
    nodes = [
        helper.make_node("LayerNormalization", ["images", "ones"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("LayerNormalization", ["b", "ones"], ["c"], name="second"),
        helper.make_node("Mul", ["c", "ones"], ["logits"], name="scale"),
    ]
    entry, result = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("images", "logits")
    )
    graph = helper.make_graph(nodes, "norms", [entry], [result], [ones])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    images = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    made, facts = fp16.convert(model, [images], tmp_path, 1)
    onnx.checker.check_model(made)
    assert facts["kept_fp32"] == 2
