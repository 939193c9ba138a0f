"""Operators as the profiler tells them: medians after the warm-up, shares, widths; providers and IO binding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.bench import inputs
from edgeprune.count import count
from edgeprune.errors import MissingHere, ModelError, UsageError
from edgeprune.runtime import ort, ort_profile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """images (1, 3, 16, 16) -> conv of 12 channels -> conv of 20 -> mean of the maps."""
    draw = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(draw.standard_normal((12, 3, 3, 3)).astype("f4"), "a.weight"),
        numpy_helper.from_array(draw.standard_normal((20, 12, 3, 3)).astype("f4"), "b.weight"),
    ]
    nodes = [
        helper.make_node("Conv", ["images", "a.weight"], ["x"], "a", pads=[1] * 4),
        helper.make_node("Relu", ["x"], ["y"], "relu"),
        helper.make_node("Conv", ["y", "b.weight"], ["z"], "b", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["z"], ["logits"], "pool"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 16, 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 20, 1, 1])
    graph = helper.make_graph(nodes, "net", [images], [logits], weights)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def event(name: str, dur: int, index: int, **args: Any) -> dict[str, Any]:
    told = {"op_name": "Conv", "node_index": str(index), "output_size": "8", "activation_size": "4", **args}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": told}


def test_medians_leave_the_warm_up_out_and_shares_add_up() -> None:
    events = [e for d in (900, 100, 300, 200) for e in (event("a", d, 1), event("b", 2 * d, 2))]
    events += [
        {"cat": "Session", "name": "model_run", "dur": 5, "args": {}},
        event("a", 1, 1) | {"cat": "Api"},
    ]
    a, b = ort_profile.of_events(events, skip=1)
    assert (a["name"], a["ms_median"], b["ms_median"]) == ("a", 0.2, 0.4)
    assert (a["pct"], b["pct"]) == (pytest.approx(100 / 3), pytest.approx(200 / 3))
    assert a["bytes"] == 12
    with pytest.raises(ModelError, match="names no operator"):
        ort_profile.of_events([], 0)


def test_layers_of_a_network_are_those_that_ran(file: Path) -> None:
    with ort.open(file) as runner:
        feeds = inputs.synthetic(runner.inputs)
        layers = runner.layer_times(feeds, runs=5)
    convolutions = [layer for layer in layers if "Conv" in layer["type"]]
    assert len(convolutions) == 2
    assert sum(layer["pct"] for layer in layers) == pytest.approx(100)
    assert all(layer["ms_median"] > 0 for layer in convolutions)
    assert convolutions[1]["weight"][2:] == [3, 3]
    assert convolutions[1]["weight"][0] >= 20, "the blocked layout may pad it"
    assert [c.weight_shape for c in count(file).layers] == [(12, 3, 3, 3), (20, 12, 3, 3)]
    assert not list(file.parent.glob("profile*")), "the profile does not stay"


def test_io_binding_gives_the_same_answers_and_the_arrays_stay_the_callers(file: Path) -> None:
    with ort.open(file) as plain, ort.open(file, io_binding=True, provider="cpu") as bound:
        assert bound.settings["io_binding"] is True
        feeds = inputs.synthetic(plain.inputs, seed=1)
        first = bound.infer(feeds)["logits"]
        np.testing.assert_array_equal(first, plain.infer(feeds)["logits"])
        kept = first.copy()
        bound.infer(inputs.synthetic(plain.inputs, seed=2))
        np.testing.assert_array_equal(first, kept)
        with pytest.raises(ModelError, match=r"received images float32\[1, 3, 8, 8\]"):
            bound.infer({"images": np.zeros((1, 3, 8, 8), np.float32)})


def test_providers_by_their_short_names(file: Path) -> None:
    with pytest.raises(
        MissingHere, match=r"has no OpenVINOExecutionProvider.*pip install onnxruntime-openvino"
    ):
        ort.open(file, provider="openvino")
    with pytest.raises(UsageError, match="--provider cude: expected one of cpu, cuda, tensorrt, openvino"):
        ort.open(file, provider="cude")
