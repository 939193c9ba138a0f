"""The engine runner against its contract, with stand-ins for the GPU and the library; wrong engines in one line."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeprune import artifact
from edgeprune.artifact import Artifact, TensorSpec
from edgeprune.cli.app import main
from edgeprune.errors import MissingHere, ModelError, UsageError
from edgeprune.runtime import cuda, tensorrt
from edgeprune.runtime.runner import Runner
from edgeprune.runtime.trt import Context, Engine

from .stand_ins import FakeContext, FakeEngine, Gpu, Kind, module

REBUILD = "edgeprune export model.onnx --to tensorrt --batch 1 --workspace 2048 --force"


def plan(folder: Path, device: str = "Orin (8.7)", **facts: Any) -> Artifact:
    """An engine file with its sidecar."""
    path = folder / "model.fp32.engine"
    path.write_bytes(b"ftrt plan")
    held = {"runtime": "tensorrt", "version": "10.3.0", "rebuild": REBUILD, **facts}
    Artifact(path, "engine", "", device=device, meta={"engine": held}).write_sidecar()
    return artifact.read(path)


def opened(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu,
    *,
    batch: int = -1,
    dtype: Kind = Kind.FLOAT,
    **facts: Any,
) -> tuple[tensorrt.TensorRTRunner, FakeEngine]:
    graphs = bool(facts.pop("graphs", True))
    engine = FakeEngine(gpu, batch, dtype)
    rtx = facts.get("runtime") == "tensorrt-rtx"
    fake = module(str(facts.get("version", "10.3.0")), gpu, engine, rtx=rtx)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx" if rtx else "tensorrt", fake)
    return tensorrt.open(plan(folder, **facts), cuda=gpu, graphs=graphs), engine


def twice(images: Any) -> Any:
    return 2 * images.sum(1)


def some(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("captures", [True, False])
def test_answers_are_right_at_every_batch_and_the_callers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captures: bool
) -> None:
    gpu = Gpu(captures=captures)
    runner: Runner
    runner, _ = opened(tmp_path, monkeypatch, gpu)
    assert runner.inputs == (TensorSpec("images", ("batch", 3, 2)),)
    assert runner.outputs == (TensorSpec("logits", ("batch", 2)),)
    kept = runner.infer({"images": some(2)})["logits"]
    for seed, n in enumerate((2, 2, 4, 1, 1, 1, 3, 2, 2)):
        images = some(n, seed)
        np.testing.assert_allclose(runner.infer({"images": images})["logits"], twice(images), rtol=1e-6)
    np.testing.assert_allclose(kept, twice(some(2)), rtol=1e-6)
    runner.close()


def test_a_graph_is_captured_once_a_shape_and_then_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu()
    runner, _ = opened(tmp_path, monkeypatch, gpu)
    for _ in range(4):
        runner.infer({"images": some(2)})
    assert gpu.counts == {"captured": 1, "launched": 3, "executed": 4}
    runner.infer({"images": some(3)})
    runner.infer({"images": some(3)})
    assert gpu.counts == {"captured": 2, "launched": 4, "executed": 6}
    runner.close()


def test_what_cannot_be_captured_runs_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    gpu.fails_to_capture = True
    with opened(tmp_path, monkeypatch, gpu)[0] as runner:
        for seed in range(3):
            found = runner.infer({"images": some(1, seed)})["logits"]
            np.testing.assert_allclose(found, twice(some(1, seed)), rtol=1e-6)
        assert runner.settings["cuda_graph"] == "off: cudaStreamEndCapture: operation not permitted"
    assert gpu.counts["executed"] == 3
    off = Gpu()
    with opened(tmp_path, monkeypatch, off, graphs=False)[0] as runner:
        runner.infer({"images": some(1)})
        runner.infer({"images": some(1)})
        assert runner.settings["cuda_graph"] is False
    assert off.counts["captured"] == 0


def test_copies_and_gpu_are_timed_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, monkeypatch, Gpu())[0] as runner:
        runner.infer({"images": some(2)})
        spans = runner.spans()
        assert [spans[k] for k in tensorrt.SPANS] == [1.0, 5.0, 2.0]  # what the stand-in's clock moves by
        assert spans["enqueue_ms"] >= 0
        assert runner.settings["device_memory_bytes"] == 64
        assert runner.layers() == '{"form": "json"}'


def test_everything_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    runner, _ = opened(tmp_path, monkeypatch, gpu)
    runner.infer({"images": some(2)})
    runner.infer({"images": some(2)})
    assert len(gpu.pins) == 2
    runner.close()
    runner.close()
    assert not gpu.open_things
    assert not gpu.pins
    assert gpu.closed == 1
    with pytest.raises(ModelError, match="this engine is closed"):
        runner.infer({"images": some(2)})


def test_wrong_inputs_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, monkeypatch, Gpu())[0] as runner:
        for fed in (some(5), some(2).astype(np.float64), some(2)[:, :2]):
            with pytest.raises(
                ModelError,
                match=r"received images .*; the engine takes images float32.* from \[1, 3, 2\] to \[4, 3, 2\]",
            ):
                runner.infer({"images": fed})
        with pytest.raises(ModelError, match=r"received pixels"):
            runner.infer({"pixels": some(2)})


def test_pixels_of_a_fixed_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    with opened(tmp_path, monkeypatch, Gpu(), batch=2, dtype=Kind.UINT8)[0] as runner:
        assert runner.inputs == (TensorSpec("images", (2, 3, 2), "uint8"),)
        np.testing.assert_array_equal(runner.infer({"images": pixels})["logits"], twice(pixels.astype(int)))


def test_rtx_keeps_what_it_compiled_and_captures_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx: dict[str, Any] = {"runtime": "tensorrt-rtx", "version": "1.7.1", "capabilities": ["8.6", "8.9"]}
    for expected in (b"+", b"++"):
        gpu = Gpu("8.9")
        runner, engine = opened(tmp_path, monkeypatch, gpu, **rtx)
        runner.infer({"images": some(2)})
        runner.infer({"images": some(2)})
        assert engine.config.cuda_graph_strategy == "whole"
        assert engine.config.dynamic_shapes_kernel_specialization_strategy == "eager"
        assert gpu.counts["captured"] == 0
        runner.close()
        assert (tmp_path / "model.fp32.engine.runtime-cache").read_bytes() == expected


@pytest.mark.parametrize("release", ["8.6.1", "10.3.0", "10.16.1.11", "11.4.0.106"])
def test_every_release_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    with opened(tmp_path, monkeypatch, Gpu(), version=release)[0] as runner:
        np.testing.assert_allclose(runner.infer({"images": some(2)})["logits"], twice(some(2)), rtol=1e-6)
        assert runner.settings["device_memory_bytes"] == 64


def test_another_release_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "tensorrt", module("10.16.1.11", gpu, FakeEngine(gpu, 1, Kind.FLOAT)))
    told = "was built by tensorrt 10.3.0, and here is tensorrt 10.16.1.11; build it again: " + REBUILD
    with pytest.raises(MissingHere, match=re.escape(told)) as caught:
        tensorrt.open(plan(tmp_path), cuda=gpu)
    assert caught.value.exit_code == 5
    tensorrt.open(plan(tmp_path, version_compatible=True), cuda=gpu).close()
    for newer in ("11.0.0", "10.17.0"):
        with pytest.raises(MissingHere, match=f"was built by tensorrt {newer}, and here is tensorrt 10.16"):
            tensorrt.open(plan(tmp_path, version=newer, version_compatible=True), cuda=gpu)
    with pytest.raises(MissingHere, match=r"was built by tensorrt-rtx 1\.7\.1, and here is tensorrt 10"):
        tensorrt.open(plan(tmp_path, version="1.7.1", runtime="tensorrt-rtx"), cuda=gpu, runtime="tensorrt")


def test_another_gpu_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("8.9")
    monkeypatch.setitem(sys.modules, "tensorrt", module("10.3.0", gpu, FakeEngine(gpu, 1, Kind.FLOAT)))
    told = "was built for Orin (8.7), and this GPU is Orin (8.9); build it again: " + REBUILD
    with pytest.raises(MissingHere, match=re.escape(told)):
        tensorrt.open(plan(tmp_path), cuda=gpu)
    assert gpu.closed == 1
    tensorrt.open(plan(tmp_path, hardware_compatible="ampere+"), cuda=gpu).close()
    with pytest.raises(MissingHere, match=r"this GPU is Orin \(7\.5\)"):
        tensorrt.open(plan(tmp_path, hardware_compatible="ampere+"), cuda=Gpu("7.5"))


def test_a_plan_that_the_library_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "tensorrt", module("10.3.0", gpu, None))
    with pytest.raises(
        ModelError, match=r"cannot open it \(built by tensorrt 10\.3\.0\): magicTag: the version"
    ) as caught:
        tensorrt.open(plan(tmp_path), cuda=gpu)
    assert "\n" not in str(caught.value)


def test_what_is_missing_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingHere, match=r"needs tensorrt, which is not installed here: pip install"):
        tensorrt.open(found)
    monkeypatch.setitem(sys.modules, "edgeprune.runtime.cuda_python", None)
    monkeypatch.setitem(sys.modules, "edgeprune.runtime.cuda_pycuda", None)
    for choice, package in (("auto", "cuda-python"), ("pycuda", "pycuda")):
        with pytest.raises(MissingHere, match=rf"needs {package}, which is not installed"):
            cuda.open(choice)
    with pytest.raises(UsageError, match="CUDA by 'cupy': expected auto, cuda-python, pycuda"):
        cuda.open("cupy")


def test_the_real_cuda_package_has_every_name_and_says_that_no_gpu_answers() -> None:
    bindings = pytest.importorskip("cuda.bindings.runtime")
    source = Path(str(cuda.__file__)).with_name("cuda_python.py").read_text()
    used = set(re.findall(r"_rt\.(cuda\w+)", source))
    assert len(used) >= 20
    for name in used:
        assert hasattr(bindings, name), name
    if int(bindings.cudaGetDeviceCount()[0]):
        with pytest.raises(
            MissingHere, match=r"no CUDA GPU answers here: CUDA driver version is insufficient"
        ):
            cuda.open()


def test_a_real_engine_without_a_gpu_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-python is not installed")
    found = plan(
        tmp_path, device="8.6", runtime="tensorrt-rtx", version=real.__version__, capabilities=["8.6"]
    )
    assert main(["bench", str(found.path)]) == 5
    assert "no CUDA GPU answers here" in capsys.readouterr().err


def test_the_stand_ins_are_of_the_types() -> None:
    engine: Engine = FakeEngine(Gpu(), 1, Kind.FLOAT)
    context: Context = FakeContext(FakeEngine(Gpu(), 1, Kind.FLOAT))
    gpu: cuda.Cuda = Gpu()
    assert engine.num_io_tensors == 2
    assert not context.infer_shapes()
    assert gpu.captures


def test_pycuda_is_spoken_to_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for pycuda.driver: what comes by address goes to the objects that pycuda wants."""
    moved: list[tuple[Any, ...]] = []

    class Stream:
        handle = 11

        def synchronize(self) -> None:
            moved.append(("wait",))

    class Memory:
        def __int__(self) -> int:
            return 4096

        def free(self) -> None:
            moved.append(("free",))

    context = SimpleNamespace(push=lambda: None, pop=lambda: moved.append(("pop",)))
    gpu = SimpleNamespace(
        compute_capability=lambda: (8, 7),
        get_attribute=lambda which: 1,
        name=lambda: "Orin",
        retain_primary_context=lambda: context,
    )
    driver = SimpleNamespace(
        Error=type("Error", (Exception,), {}),
        init=lambda: None,
        Device=lambda i: gpu,
        device_attribute=SimpleNamespace(INTEGRATED=18),
        mem_alloc=lambda size: Memory(),
        Stream=Stream,
        pagelocked_empty=np.empty,
        memcpy_htod_async=lambda *given: moved.append(("in", *given)),
        memcpy_dtoh_async=lambda *given: moved.append(("out", *given)),
    )
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=driver))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    with_pycuda = cuda.open("pycuda")
    assert str(with_pycuda.device) == "Orin (8.7)"
    assert not with_pycuda.captures
    stream, address, host = with_pycuda.stream(), with_pycuda.malloc(8), with_pycuda.pinned(8)
    with_pycuda.to_device(address, host, stream)
    with_pycuda.to_host(host, address, stream)
    with_pycuda.synchronise(stream)
    with_pycuda.free(address)
    assert [step[0] for step in moved] == ["in", "out", "wait", "free"]
    assert moved[0][1] == 4096
    assert isinstance(moved[0][3], Stream)
    with_pycuda.close()
    with_pycuda.close()
    assert [step[0] for step in moved].count("pop") == 1
