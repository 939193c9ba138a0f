"""Engines by the real tensorrt_rtx, ahead of time and without a GPU; what stops a wrong request, in one line."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeprune import artifact, progress
from edgeprune.errors import BrokenModel, DataError, MissingHere, UsageError
from edgeprune.export import build_engine, engine, precision
from edgeprune.export.engine import BuildOptions

from .small_graphs import images, network

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed (extra: rtx)"
)
ADA = BuildOptions("tensorrt-rtx", capabilities=("8.9",))


@needs_rtx
@pytest.mark.parametrize(("word", "kind"), [("fp32", "Float"), ("fp16", "Half"), ("int8", "Int8")])
def test_the_build_log_shows_the_precision_asked_for(tmp_path: Path, word: str, kind: str) -> None:
    source = network(tmp_path / "model.onnx", batch=1)
    if word != "fp32":
        source = precision.lower(source, tmp_path / f"model.{word}.onnx", word, images=[images()]).path
    made = engine.build(source, tmp_path / f"model.{word}.engine", ADA)
    facts = made.meta["engine"]
    assert facts["layers"].get(f"convolutions_{kind}", 0) == 3, facts["layers"]
    assert facts["strongly_typed"]
    assert made.meta["precision"] == word
    assert artifact.read(made.path).inputs == made.inputs


@needs_rtx
def test_free_batch_gets_a_profile_and_the_sidecar_tells_how(tmp_path: Path) -> None:
    source = network(tmp_path / "model.onnx")
    options = BuildOptions("tensorrt-rtx", "1:4:8", ("8.6", "8.9", "12.0"), 512)
    engine.build(source, tmp_path / "model.engine", options)
    side = artifact.read(tmp_path / "model.engine")
    facts = side.meta["engine"]
    assert facts["profile"] == "1:4:8"
    assert side.inputs[0].shape == ("batch", 3, 16, 16)
    assert side.parents == (artifact.sha256(source),)
    assert facts["onnx"] == {"file": "model.onnx", "sha256": artifact.sha256(source)}
    assert side.device == "8.6, 8.9, 12.0"
    assert facts["version"][0].isdigit()
    assert facts["rebuild"] == (
        "edgeprune export model.onnx --to tensorrt-rtx --batch 1:4:8 "
        "--compute-capability 8.6,8.9,12.0 --workspace 512 --force"
    )


@needs_rtx
def test_an_engine_without_a_target_says_what_it_was_built_for(tmp_path: Path) -> None:
    engine.build(network(tmp_path / "model.onnx"), tmp_path / "model.engine", BuildOptions("tensorrt-rtx"))
    assert artifact.read(tmp_path / "model.engine").device == "compute capability 8.0 and later"


@needs_rtx
def test_what_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "model.engine"
    odd = network(tmp_path / "odd.onnx", extra="Bessel")
    with pytest.raises(
        MissingHere, match=r"odd\.onnx: not taken by .*: operator Bessel of .*odd_layer"
    ) as caught:
        engine.build(odd, out, ADA)
    assert "\n" not in str(caught.value)
    unknown = BuildOptions("tensorrt-rtx", capabilities=("8.7",))
    with pytest.raises(UsageError, match=r"--compute-capability 8\.7: tensorrt_rtx .* knows 7\.5, 8\.0"):
        engine.build(network(tmp_path / "model.onnx"), out, unknown)
    assert not out.exists()
    assert not list(tmp_path.glob(".export-*"))


def test_broken_files_are_one_line(tmp_path: Path) -> None:
    whole = network(tmp_path / "model.onnx")
    cut = tmp_path / "cut.onnx"
    for data in (whole.read_bytes()[:3000], b"", b"not onnx at all"):
        cut.write_bytes(data)
        with pytest.raises(BrokenModel, match=r"cut\.onnx: not a whole ONNX file") as caught:
            engine.build(cut, tmp_path / "x.engine", ADA)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        engine.build(tmp_path / "none.onnx", tmp_path / "x.engine", ADA)


def test_missing_package_names_the_command() -> None:
    with pytest.raises(MissingHere, match=r"needs no-such-trt.*pip install no-such-trt") as caught:
        build_engine._module("no_such_trt")
    assert caught.value.exit_code == 5


def test_words() -> None:
    with pytest.raises(UsageError, match=r"--compute-capability 8\.6;8\.9: expected numbers such as"):
        engine.capabilities("8.6;8.9")
    with pytest.raises(UsageError, match="is for --to tensorrt-rtx"):
        BuildOptions("tensorrt", capabilities=("8.9",))
    with pytest.raises(UsageError, match="--to tflite: expected onnx, tensorrt, tensorrt-rtx"):
        BuildOptions("tflite")


def test_flags_by_release() -> None:
    """8.x is told of the explicit batch and of precisions; 10 and 11 type the graph strongly."""
    eight = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0))
    eleven = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1))
    assert build_engine._flags(eight, strong=False) == 1
    assert build_engine._flags(eleven, strong=True) == 2
    asked: list[str] = []
    trt = SimpleNamespace(BuilderFlag=SimpleNamespace(FP16="FP16", INT8="INT8"))
    for word in ("fp32", "fp16", "int8"):
        build_engine._weak_flags(trt, SimpleNamespace(set_flag=asked.append), word)
    assert asked == ["FP16", "FP16", "INT8"]


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2 pruned"])
def test_a_real_network_builds_in_three_precisions(tmp_path: Path, name: str) -> None:
    """ResNet-18, and MobileNetV2 cut to half of its MACs, at 64 pixels: the convolutions have the type asked for."""
    source, layers = tmp_path / "model.onnx", real_network(tmp_path / "model.onnx", name)
    proof = [
        np.kron(np.random.default_rng(1).standard_normal((8, 3, 8, 8)), np.ones((8, 8))).astype(np.float32)
    ]
    for word, kind in (("fp32", "Float"), ("fp16", "Half"), ("int8", "Int8")):
        file = source
        if word != "fp32":
            file = tmp_path / f"model.{word}.onnx"
            precision.lower(source, file, word, images=proof, max_flip=1.0, calibration="minmax", threads=1)
        made = engine.build(file, tmp_path / f"model.{word}.engine", ADA).meta["engine"]
        share = made["layers"].get(f"convolutions_{kind}", 0) / layers
        assert share > 0.9, (word, layers, made["layers"])
        assert not made["warnings"], made["warnings"]


def real_network(path: Path, name: str) -> int:
    """Export random weights and return how many convolutions there are."""
    import torch
    import torchvision

    from edgeprune.prune import budget, macs, surgery
    from edgeprune.prune import graph as pruning
    from edgeprune.prune.scores.magnitude import Magnitude

    torch.manual_seed(0)
    module = torchvision.models.get_model(name.removesuffix(" pruned"), weights=None, num_classes=10).eval()
    example = torch.randn(1, 3, 64, 64)
    if name.endswith(" pruned"):
        couplings = pruning.find(module, example)
        limit = {"macs": 0.5 * macs.measure(module, example)[0]}
        scores = Magnitude()(module, couplings)
        surgery.apply(module, budget.plan(module, example, couplings, scores, limit), couplings)
    torch.onnx.export(
        module,
        (example,),
        str(path),
        dynamo=True,
        opset_version=20,
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    return sum(isinstance(m, torch.nn.Conv2d) for m in module.modules())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = network(tmp_path / "model.onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        MissingHere, match=r"file/model\.engine: cannot be written \(.*\); give another --output"
    ):
        engine.build(source, tmp_path / "file" / "model.engine", ADA)

    def refuse(*given: object, **words: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(MissingHere, match=r"model\.engine: cannot be written \(Read-only file system\)"):
        engine.build(source, tmp_path / "model.engine", ADA)


@needs_rtx
def test_how_far_the_build_is_reaches_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    @contextlib.contextmanager
    def watched(name: str, total: int) -> Iterator[Any]:
        assert (name, total) == ("build tensorrt-rtx", 100)
        yield lambda more=1, **shown: steps.append(more)

    monkeypatch.setattr(progress, "bar", watched)
    engine.build(network(tmp_path / "model.onnx", batch=1), tmp_path / "model.engine", ADA)
    assert sum(steps) == 100
    assert len(steps) > 5
    assert min(steps) >= 0


def test_torch_is_not_needed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgeprune.cli.app import main\n"
        "sys.exit(main(['export', sys.argv[1], '--to', 'tensorrt-rtx', '--precision', 'fp16', '--max-flip', '1']))"
    )
    source = network(tmp_path / "model.onnx", batch=1)
    done = subprocess.run(
        [sys.executable, "-c", code, str(source)], capture_output=True, text=True, check=False
    )
    if importlib.util.find_spec("tensorrt_rtx") is None:
        assert done.returncode == 5
        assert "pip install tensorrt-rtx" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "model.fp16.engine").is_file()
