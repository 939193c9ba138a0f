"""Engines that this machine cannot run: what inspect says of them, and what bench says without their sidecar."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from edgeprune import artifact
from edgeprune.artifact import Artifact, TensorSpec
from edgeprune.cli.app import main
from edgeprune.commands.inspect import inspect
from edgeprune.device_options import InspectOptions
from edgeprune.errors import MissingHere
from edgeprune.runtime import engines


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "slim.engine"
    path.write_bytes(b"ftrt plan")
    built = {
        "runtime": "tensorrt-rtx",
        "version": "1.7.1",
        "profile": "1:8:32",
        "rebuild": "edgeprune export m",
    }
    meta = {"engine": built, "precision": "fp16", "classes": ["cat", "dog"], "macs": 42}
    inputs = (TensorSpec("images", ("batch", 3, 8, 8)),)
    sha = artifact.sha256(path)
    Artifact(path, "engine", sha, inputs, (), ("ab" * 32,), "8.6, 12.0", meta).write_sidecar()
    return path


def test_inspect_tells_what_the_sidecar_holds(engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    facts = inspect(InspectOptions(file=str(engine))).to_json()
    assert (facts["kind"], facts["device"], facts["precision"]) == ("engine", "8.6, 12.0", "fp16")
    assert (facts["engine"]["runtime"], facts["engine"]["version"]) == ("tensorrt-rtx", "1.7.1")
    assert facts["inputs"] == [{"name": "images", "shape": ("batch", 3, 8, 8), "dtype": "float32"}]
    assert (facts["classes"], facts["bytes"], facts["macs"]) == (["cat", "dog"], 9, 42)
    assert "note" not in facts
    assert main(["inspect", str(engine)]) == 0
    out = capfd.readouterr().out
    assert "tensorrt-rtx" in out
    assert "8.6, 12.0" in out
    engine.write_bytes(b"another")
    assert "not the one that its sidecar" in inspect(InspectOptions(file=str(engine))).to_json()["note"]


def test_inspect_without_a_sidecar_says_so(engine: Path) -> None:
    artifact.sidecar(engine).unlink()
    facts = inspect(InspectOptions(file=str(engine))).to_json()
    assert facts["note"].startswith("no slim.engine.json beside it, so nothing says")
    assert facts["bytes"] == 9


def test_an_engine_without_a_sidecar_is_tried_by_the_library_that_is_here(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engines.runtime_of(artifact.read(engine)) == "tensorrt-rtx", "its sidecar says so"
    artifact.sidecar(engine).unlink()
    found = artifact.read(engine)
    anything = importlib.import_module("json")
    for here, chosen in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")):
        for package in engines.MODULES.values():
            monkeypatch.setitem(sys.modules, package, anything if package == here else None)
        assert engines.runtime_of(found) == chosen
    for package in engines.MODULES.values():
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingHere, match=r"neither is installed here: .*'edgeprune\[rtx,cuda\]' for TensorRT-RTX"
    ):
        engines.runtime_of(found)


def test_an_engine_that_no_library_knows_names_the_other_one(engine: Path) -> None:
    artifact.sidecar(engine).unlink()
    told = engines._unknown(artifact.read(engine), "tensorrt")
    assert told.endswith(
        "slim.engine.json is not beside it; if tensorrt-rtx did, give --runtime tensorrt-rtx"
    )
