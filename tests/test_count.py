"""MACs and parameters against a count by hand, for every operator that multiplies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeprune.count import count
from edgeprune.errors import DataError, ModelError

F = TensorProto.FLOAT


def graph(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[Any]], weights: dict[str, Any], opset: int = 20
) -> onnx.ModelProto:
    tensors = [
        numpy_helper.from_array(w if isinstance(w, np.ndarray) else np.zeros(w, np.float32), n)
        for n, w in weights.items()
    ]
    values = [helper.make_tensor_value_info(n, F, s) for n, s in inputs.items()]
    output = helper.make_tensor_value_info(nodes[-1].output[0], F, None)
    made = helper.make_graph(nodes, "g", values, [output], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 4),
    inside=st.integers(1, 3),
    outside=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    size=st.integers(4, 7),
)
def test_grouped_convolution(
    groups: int, inside: int, outside: int, kernel: int, stride: int, size: int
) -> None:
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], group=groups, strides=[stride, stride], pads=[1, 0, 1, 0]
    )
    model = graph(
        [node],
        {"x": ["batch", groups * inside, size, size]},
        {"w": [groups * outside, inside, kernel, kernel], "b": [groups * outside]},
    )
    out = [(size + pad - kernel) // stride + 1 for pad in (2, 0)]
    by_hand = sum(inside * kernel * kernel for _ in range(groups * outside * out[0] * out[1]))
    made = count(model)
    assert made.macs == by_hand
    assert made.params == groups * outside * (inside * kernel * kernel + 1)
    assert made.layers[0].weight_shape == (groups * outside, inside, kernel, kernel)
    assert made.layers[0].output_shape == (1, groups * outside, *out)


def test_transposed_convolution() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=2)
    # every one of 4*5*5 input elements meets 3 outputs of its group, 2x2 taps
    assert count(graph([node], {"x": [1, 4, 5, 5]}, {"w": [4, 3, 2, 2]})).macs == 4 * 25 * 3 * 4


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    turn = helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0] if transposed else [0, 1])
    node = helper.make_node("Gemm", ["t", "w", "b"], ["y"], transA=transposed, transB=1)
    assert count(graph([turn, node], {"x": [1, 7]}, {"w": [5, 7], "b": [5]})).macs == 35


def test_matmul_broadcasts_and_activations_have_no_weight() -> None:
    node = helper.make_node("MatMul", ["q", "k"], ["y"])
    made = count(graph([node], {"q": ["n", 3, 4, 8], "k": ["n", 1, 8, 6]}, {}))
    assert made.macs == 3 * 4 * 8 * 6
    assert made.params == 0
    assert made.layers[0].weight_shape is None


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("bhid,bhjd->bhij", [[1, 2, 3, 4], [1, 2, 5, 4]], 2 * 3 * 5 * 4),
        ("...ij,jk->...ik", [[1, 6, 3, 4], [4, 5]], 6 * 3 * 4 * 5),
        ("b i , j k -> b i j k", [[1, 3], [4, 5]], 60),
        ("bii->bi", [[1, 3, 3]], 0),
        ("bi,ij,jk->bk", [[1, 2], [2, 3], [3, 4]], 2 * 24),
    ],
)
def test_einsum(equation: str, shapes: list[list[int]], expected: int) -> None:
    names = [f"x{i}" for i in range(len(shapes))]
    node = helper.make_node("Einsum", names, ["y"], equation=equation)
    assert count(graph([node], dict(zip(names, shapes, strict=True)), {})).macs == expected


def test_quantised_weights_count_once_and_their_scales_do_not() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    weights = {"w8": np.zeros((6, 3, 3, 3), np.int8), "scale": [6], "zero": np.zeros(6, np.int8)}
    made = count(graph(nodes, {"x": [1, 3, 8, 8]}, weights))
    assert made.macs == 6 * 36 * 27
    assert made.params == made.layers[0].params == 6 * 27
    assert made.layers[0].weight_shape == (6, 3, 3, 3)


def reshaping(batch: Any) -> onnx.ModelProto:
    """What exporters write for x.reshape(B, -1) @ w: the sizes are computed in the graph."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["b"]),
        helper.make_node("ReduceProd", ["shape"], ["all"], keepdims=0),
        helper.make_node("Div", ["all", "b"], ["rest"]),
        helper.make_node("Unsqueeze", ["b", "axis"], ["b1"]),
        helper.make_node("Unsqueeze", ["rest", "axis"], ["r1"]),
        helper.make_node("Concat", ["b1", "r1"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weights = {"zero": np.asarray(0), "axis": np.asarray([0]), "w": [2000, 7]}
    return graph(nodes, {"x": [batch, 20, 10, 10]}, weights)


@pytest.mark.parametrize("batch", ["batch", None, 1, 8])
def test_one_image_is_counted_whatever_the_batch(batch: Any) -> None:
    made = count(reshaping(batch))
    assert made.macs == 2000 * 7
    assert made.params == 2000 * 7


def test_counting_leaves_the_model_alone() -> None:
    model = reshaping("batch")
    before = model.SerializeToString(deterministic=True)
    count(model)
    assert model.SerializeToString(deterministic=True) == before


def test_tied_weights_count_once_and_unused_ones_not_at_all() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    made = count(graph(nodes, {"x": [1, 5]}, {"w": [5, 5], "idle": [1000]}))
    assert (made.macs, made.params) == (50, 25)


def test_names_come_from_the_weight_or_the_exporters_note() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "block.fc.weight"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    nodes[1].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'block', 'block.head', 'linear']"
    )
    made = count(graph(nodes, {"x": [1, 5]}, {"block.fc.weight": [5, 5], "v": [5, 2]}))
    assert [layer.name for layer in made.layers] == ["block.fc", "block.head"]


def test_a_weight_computed_from_initialisers_belongs_to_its_layer() -> None:
    """Standardised weights (NFNet, BiT) stay an expression when they are too large to fold."""
    nodes = [
        helper.make_node("ReduceMean", ["stem.weight"], ["m"]),
        helper.make_node("Sub", ["stem.weight", "m"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("ReduceMean", ["a"], ["n"]),
        helper.make_node("Mul", ["n", "a"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    made = count(graph(nodes, {"x": [1, 3, 4, 4]}, {"stem.weight": [8, 3, 1, 1]}))
    assert (made.layers[0].name, made.layers[0].weight_shape) == ("stem", (8, 3, 1, 1))
    assert made.layers[1].weight_shape is None
    assert made.params == made.layers[0].params == 24


def test_what_is_not_known_is_named() -> None:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2, name="recur")
    made = count(graph([node], {"x": [3, 1, 4]}, {"w": [1, 8, 4], "r": [1, 8, 2]}))
    assert made.uncounted == ("recur (LSTM)",)


def test_functions_are_opened() -> None:
    body = helper.make_function(
        "own",
        "Twice",
        ["a", "b"],
        ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        [helper.make_opsetid("", 20)],
    )
    model = graph([helper.make_node("Twice", ["x", "w"], ["y"], domain="own")], {"x": [1, 5]}, {"w": [5, 3]})
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert count(model).macs == 15


def test_weights_on_disk_are_not_needed(tmp_path: Path) -> None:
    model = reshaping(1)
    onnx.save_model(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024
    )
    (tmp_path / "m.data").unlink()
    assert count(tmp_path / "m.onnx").params == 14000


def test_helpful_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.onnx: cannot be read"):
        count(tmp_path / "no.onnx")
    whole = reshaping(1).SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.onnx: not an ONNX file, or truncated"):
        count(tmp_path / "cut.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(DataError, match="without a graph"):
        count(tmp_path / "empty.onnx")
    with pytest.raises(ModelError, match="input x: dimension 2 is free; only the first may be"):
        count(graph([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 3, "h", 4]}, {}))
    data = [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Cast", ["i"], ["f"], to=F)]
    data.append(helper.make_node("MatMul", ["w", "f"], ["y"], name="late"))
    with pytest.raises(ModelError, match=r"late \(MatMul\): the shape of 'f' is not known"):
        count(graph(data, {"x": [1, 3]}, {"w": [4, 2]}))
    with pytest.raises(
        ModelError, match=r"y \(MatMul\): the graph's shapes do not fit: .*ncompatible dimensions"
    ):
        count(graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 3]}, {"w": [4, 2]}))


def test_count_is_exact_for_a_large_graph() -> None:
    side, width, depth = 56, 64, 6
    nodes, weights, name = [], {}, "x"
    for i in range(depth):
        weights[f"w{i}"] = [width, width, 3, 3]
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [f"y{i}"], pads=[1, 1, 1, 1]))
        name = f"y{i}"
    made = count(graph(nodes, {"x": ["n", width, side, side]}, weights))
    assert made.macs == depth * side**2 * width**2 * 9
    assert made.macs == sum(layer.macs for layer in made.layers)
    assert made.params == depth * math.prod([width, width, 3, 3])
