"""Files that ONNX Runtime does not open: one line, none of its codes, and an exit code that says whose fault it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeprune.cli.app import main
from edgeprune.errors import BrokenModel, MissingHere, ModelError
from edgeprune.runtime import ort, ort_errors


def good() -> ModelProto:
    tensors = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 4, 4]) for n in ("images", "logits")
    ]
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    node = helper.make_node("Conv", ["images", "w"], ["logits"], "a", kernel_shape=[1, 1])
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def opset(model: ModelProto) -> None:
    model.opset_import[0].version = 99


def newer(model: ModelProto) -> None:
    model.ir_version = 99


def unknown(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Fancy"


def foreign(model: ModelProto) -> None:
    unknown(model)
    model.graph.node[0].domain = "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))


def dangling(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def misfit(model: ModelProto) -> None:
    model.graph.node[0].attribute[0].ints.append(1)


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (
            opset,
            MissingHere,
            r"m\.onnx: opset 99; ONNX Runtime \S+ knows up to \d+: export it with --opset 20",
        ),
        (newer, MissingHere, r"ONNX IR version 99; ONNX Runtime \S+ reads up to \d+: export it again"),
        (
            unknown,
            MissingHere,
            r"operator Fancy of node a is not known to ONNX Runtime \S+ at opset 17: replace",
        ),
        (foreign, MissingHere, r"operator acme\.Fancy is not known to ONNX Runtime \S+: replace that layer"),
        (
            dangling,
            BrokenModel,
            r"no valid graph \(Invalid model\. Node input 'nowhere' is not a graph input",
        ),
        (misfit, BrokenModel, r"no valid graph \(.*kernel_shape.*\); export it again"),
    ],
)
def test_a_graph_that_does_not_open(
    tmp_path: Path, spoil: Callable[[ModelProto], None], kind: type[Exception], said: str
) -> None:
    model = good()
    ort.open(save(model, tmp_path)).close()
    spoil(model)
    with pytest.raises(kind, match=said) as caught:
        ort.open(save(model, tmp_path))
    assert isinstance(caught.value, ModelError), "an export that tries a second exporter goes on"
    for noise in ("ONNXRuntimeError", "onnxruntime_src", "\n"):
        assert noise not in str(caught.value)


def save(model: ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("content", [b"", b"hello" * 50, b"whole"])
def test_bench_predict_and_inspect_end_with_4_for_a_broken_file(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str], make_images: Callable[..., Path]
) -> None:
    file = save(good(), tmp_path)
    file.write_bytes(file.read_bytes()[:-20] if content == b"whole" else content)
    folder = str(make_images(tmp_path / "images"))
    for words in (["bench", str(file)], ["predict", str(file), "--images", folder], ["inspect", str(file)]):
        assert main(words) == 4, words
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        assert "m.onnx" in err
        assert "ONNXRuntimeError" not in err


def test_bench_ends_with_5_for_what_is_not_known_here(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = good()
    unknown(model)
    assert main(["bench", str(save(model, tmp_path))]) == 5
    assert "operator Fancy" in capfd.readouterr().err


def test_weights_that_are_not_beside_the_file(tmp_path: Path) -> None:
    onnx.save(good(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(BrokenModel, match="its weights, which lie in a file of their own, are not beside it"):
        ort.open(tmp_path / "m.onnx")


def test_a_sentence_that_is_not_known_is_passed_on_plainly() -> None:
    err = RuntimeError(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : /src/core/x.cc:12 void ns::f(int) Out of luck"
    )
    made = ort_errors.refusal(Path("m.onnx"), err, "1.0")
    assert str(made) == "m.onnx: ONNX Runtime 1.0 cannot run it: Out of luck; export it again"
    assert made.exit_code == 5
