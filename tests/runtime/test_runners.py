"""Each runner against plain numpy, the settings it promises, and what it says when it cannot."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeprune import artifact
from edgeprune.artifact import TensorSpec
from edgeprune.errors import BrokenModel, DataError, MissingHere, ModelError, UsageError
from edgeprune.runtime import Runner, metadata, ort
from edgeprune.runtime import torch as torch_runtime

WEIGHT = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def model(batch: Any = "batch") -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["images", "w"], ["logits"]),
        helper.make_node("Relu", ["logits"], ["positive"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 6])]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 4]) for n in ("logits", "positive")
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(WEIGHT, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made.metadata_props.add(key="edgeprune.classes", value='["a", "b"]')
    made.metadata_props.add(key="author", value="someone")
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    onnx.save(model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def torch_runner() -> Runner:
    weight = torch.from_numpy(WEIGHT)
    inputs = [TensorSpec("images", ("batch", 6))]
    outputs = [TensorSpec(n, ("batch", 4)) for n in ("logits", "positive")]
    return torch_runtime.open(lambda x: (x @ weight, (x @ weight).relu()), inputs, outputs)


@pytest.mark.parametrize("opened", ["ort", "torch"])
def test_every_runner_computes_the_same_function(file: Path, opened: str) -> None:
    openers: dict[str, Callable[[], Runner]] = {"ort": lambda: ort.open(file), "torch": torch_runner}
    with openers[opened]() as runner:
        assert runner.name == opened
        assert runner.inputs == (TensorSpec("images", ("batch", 6)),)
        assert [t.name for t in runner.outputs] == ["logits", "positive"]
        for n in (1, 5):
            x = np.random.default_rng(n).standard_normal((n, 6)).astype(np.float32)
            made = runner.infer({"images": x})
            np.testing.assert_allclose(made["logits"], x @ WEIGHT, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(made["positive"], np.maximum(x @ WEIGHT, 0), rtol=1e-5, atol=1e-6)
        kept = made["logits"].copy()
        runner.infer({"images": x * 2})
        np.testing.assert_array_equal(made["logits"], kept)
    runner.close()
    with pytest.raises(ModelError, match="closed"):
        runner.infer({"images": x})


def test_ort_is_told_threads_and_not_to_spin(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = onnxruntime.InferenceSession

    def watched(path: str, options: Any, providers: list[str]) -> Any:
        seen.append(options)
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    with ort.open(artifact.read(file), threads=2) as runner:
        assert runner.settings["threads"] == 2
        assert runner.settings["spin_wait"] is False
    options = seen[0]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_ort_never_falls_back_silently(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingHere, match=r"has no CUDAExecutionProvider, only .*CPUExecutionProvider"):
        ort.open(file, provider="CUDAExecutionProvider")
    # A build that lists the provider but then takes another one.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", ort.CPU])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda p, o, providers: real(p, providers=[ort.CPU]))
    with pytest.raises(
        MissingHere, match="asked for CUDAExecutionProvider, ONNX Runtime took CPUExecutionProvider"
    ):
        ort.open(file, provider="CUDAExecutionProvider")


def test_torch_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    inputs, outputs = [TensorSpec("x", (1, 2))], [TensorSpec("y", (1, 2))]
    with torch_runtime.open(torch.nn.Identity(), inputs, outputs, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_metadata_round_trip(file: Path) -> None:
    facts = {"classes": ["ä", "b"], "size": [8, 9], "none": None}
    assert metadata.from_props(metadata.to_props(facts)) == facts
    assert metadata.from_props({"other": "{", "edgeprune.bad": "{"}) == {}
    with ort.open(file) as runner:
        assert metadata.from_props(runner.metadata) == {"classes": ["a", "b"]}


def test_helpful_errors(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.onnx: no such file"):
        ort.open(tmp_path / "no.onnx")
    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:40])
    with pytest.raises(
        BrokenModel, match=r"cut\.onnx: not a whole ONNX file \(Protobuf parsing failed"
    ) as caught:
        ort.open(tmp_path / "cut.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="--threads -1: expected 0"):
        ort.open(file, threads=-1)
    wrong = r"received images float32\[2, 5\]; the network takes images float32\['batch', 6\]"
    with ort.open(file) as runner, pytest.raises(ModelError, match=wrong):
        runner.infer({"images": np.zeros((2, 5), np.float32)})
    two = [TensorSpec("a", (1,)), TensorSpec("b", (1,))]
    with (
        torch_runtime.open(torch.nn.Identity(), two[:1], two) as runner2,
        pytest.raises(ModelError, match="returned 1 tensors; expected 2"),
    ):
        runner2.infer({"a": np.zeros(1, np.float32)})
    if not torch.cuda.is_available():
        with pytest.raises(MissingHere, match="sees no CUDA device"):
            torch_runtime.open(torch.nn.Identity(), two, two, device="cuda")


def test_a_cuda_device_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    spec = [TensorSpec("a", (1,))]
    with pytest.raises(MissingHere, match="--device cuda:2: torch sees 2 CUDA devices here, from cuda:0 on"):
        torch_runtime.open(torch.nn.Identity(), spec, spec, device="cuda:2")


def test_compiling_does_not_talk_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    talker = logging.getLogger("torch.utils.cpp_extension")
    monkeypatch.setattr(talker, "level", logging.WARNING)
    monkeypatch.setenv("CXX", "g++")
    spec = [TensorSpec("a", (1,))]
    torch_runtime.open_compiled(torch.nn.Identity(), spec, spec).close()
    assert talker.level == logging.ERROR


def test_the_device_side_runs_where_torch_cannot_be_imported(file: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from pathlib import Path
from edgeprune.runtime import ort
from edgeprune.bench import compare, inputs, jetson, machine, measure, power, result, statistics
from edgeprune.count import count
with ort.open(Path({str(file)!r})) as runner:
    feeds = inputs.synthetic(runner.inputs)
    samples = measure.measure({{"a": runner}}, {{"a": feeds}}, warmup_s=0, min_s=0, min_runs=4)
print(count(Path({str(file)!r})).macs, statistics.summary(samples["a"].latency_s).n >= 4)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "24 True", done.stderr
