"""The one building path against four releases of classic TensorRT: the names that each has, the right words to it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.errors import MissingHere, RunError, UsageError
from edgeprune.export import build_engine
from edgeprune.export.engine import BuildOptions

from .stand_in_builder import TABLE, module

RELEASES = sorted(TABLE, key=lambda word: [int(part) for part in word.split(".")[:2]])
EIGHT, TEN, TEN_16, ELEVEN = RELEASES


def ask(
    folder: Path, monkeypatch: pytest.MonkeyPatch, release: str, precision: str = "fp32", **options: Any
) -> tuple[dict[str, Any], Any]:
    fake, log = module(release)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(build_engine, "_gpu", lambda: "Orin (8.7)")
    request = BuildOptions("tensorrt", "1:4:8", **options).request()
    request |= {"onnx": str(folder / "m.onnx"), "output": str(folder / "m.engine"), "precision": precision}
    return build_engine.build(request), log


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_each_release_is_told_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, precision: str
) -> None:
    made, log = ask(tmp_path, monkeypatch, release, precision, optimization_level=3)
    strong = release != EIGHT
    assert made["strongly_typed"] is strong
    assert made["version"] == release
    weak = {"fp32": [], "fp16": ["FP16"], "int8": ["FP16", "INT8"]}[precision]
    assert log.enabled == ([] if strong else weak)
    flags = sys.modules["tensorrt"].NetworkDefinitionCreationFlag
    assert log.flags == 1 << int(flags["STRONGLY_TYPED" if strong else "EXPLICIT_BATCH"])
    assert log.shapes == [("images", ((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8)))]
    assert log.limits == [2048 << 20]
    assert log.config.set["builder_optimization_level"] == 3
    assert (tmp_path / "m.engine").read_bytes() == b"ftrt"
    assert made["inputs"] == [{"name": "images", "shape": ["batch", 3, 8, 8], "dtype": "float32"}]


def test_compatibility_and_dla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide: dict[str, Any] = {"version_compatible": True, "hardware_compatible": "ampere+"}
    for release in RELEASES:
        _, log = ask(tmp_path, monkeypatch, release, dla=1, **wide)
        assert log.enabled == ["VERSION_COMPATIBLE", "GPU_FALLBACK"]
        assert log.config.set["hardware_compatibility_level"].name == "AMPERE_PLUS"
        assert log.config.set["default_device_type"].name == "DLA"
        assert log.config.set["DLA_core"] == 1
    _, log = ask(tmp_path, monkeypatch, TEN_16, hardware_compatible="same-capability")
    assert log.config.set["hardware_compatibility_level"].name == "SAME_COMPUTE_CAPABILITY"
    with pytest.raises(
        UsageError, match=r"same-capability: tensorrt 10\.3\.0 has it not; it came with 10\.13"
    ):
        ask(tmp_path, monkeypatch, TEN, hardware_compatible="same-capability")
    with pytest.raises(UsageError, match="--dla 2: this machine has 2 DLA cores, counted from 0"):
        ask(tmp_path, monkeypatch, TEN, dla=2)


def test_timings_are_kept_for_the_release_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "timings"
    _, log = ask(tmp_path, monkeypatch, TEN, timing_cache=folder)
    assert log.cache == b""
    _, log = ask(tmp_path, monkeypatch, TEN, timing_cache=folder)
    assert log.cache == b"timings of 10.3.0"
    _, log = ask(tmp_path, monkeypatch, TEN_16, timing_cache=folder)
    assert log.cache == b""
    assert sorted(p.name for p in folder.iterdir()) == [
        "tensorrt-10.16.1.11-Orin-8.7.timing",
        "tensorrt-10.3.0-Orin-8.7.timing",
    ]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--timing-cache .*file.*: cannot be"):
        ask(tmp_path, monkeypatch, TEN, timing_cache=tmp_path / "file")


def test_how_far_it_is_is_told_from_10_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(tmp_path, monkeypatch, EIGHT)
    assert capsys.readouterr().out == ""
    ask(tmp_path, monkeypatch, ELEVEN)
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert told == [["progress", str(n), "Building"] for n in (0, 25, 50, 75, 100)]


@pytest.mark.parametrize("release", [EIGHT, ELEVEN])
def test_the_parsers_words_name_the_layer_where_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    error = SimpleNamespace(desc=lambda: "no importer\n for it")
    if release != EIGHT:
        error.node_name = lambda: "layer1.0.odd"
    fake, _ = module(release, errors=[error])
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    request = BuildOptions("tensorrt").request() | {"output": "m", "precision": "fp32"}
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 4, 4]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="layer1.0.odd")], "one", io[:1], io[1:]
    )
    request["onnx"] = str(tmp_path / "m.onnx")
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), request["onnx"])
    where = "" if release == EIGHT else "operator Relu of node layer1.0.odd: "
    with pytest.raises(
        MissingHere, match=f"m.onnx: not taken by tensorrt {release}: {where}no importer for it$"
    ):
        build_engine.build(request)


def test_words() -> None:
    given: list[tuple[dict[str, Any], str]] = [
        ({"optimization_level": 6}, "--optimization-level 6: expected 0 to 5"),
        ({"hardware_compatible": "all"}, "--hardware-compatible all: expected ampere[+] or same-capability"),
        ({"dla": -1}, "--dla -1: expected the number of a core"),
    ]
    for words, told in given:
        with pytest.raises(UsageError, match=told):
            BuildOptions("tensorrt", **words)
    classic: list[dict[str, Any]] = [
        {"dla": 0},
        {"version_compatible": True},
        {"hardware_compatible": "ampere+"},
        {"timing_cache": Path("x")},
    ]
    for words in classic:
        with pytest.raises(UsageError, match="is for --to tensorrt; tensorrt-rtx has none of it"):
            BuildOptions("tensorrt-rtx", **words)
    full = BuildOptions("tensorrt", "1", (), 512, 4, Path("t"), True, "ampere+", 1)
    assert full.command(Path("a/m.onnx")) == (
        "edgeprune export m.onnx --to tensorrt --batch 1 --workspace 512 --optimization-level 4 --timing-cache t "
        "--version-compatible --hardware-compatible ampere+ --dla 1 --force"
    )
