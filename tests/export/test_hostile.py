"""Broken and hostile input to `edgeprune export FILE.onnx --precision ...`: one line, an exit code, nothing written."""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeprune.cli.app import main

from .small_graphs import network

Fails = Callable[..., str]


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Fails:
    """Run the command; its one error line, after checking the exit code and that no ONNX file came of it."""

    def run(source: Path, code: int, *words: str) -> str:
        before = sorted(source.parent.iterdir())
        assert main(["export", str(source), *(words or ("--precision", "fp16")), "--threads", "1"]) == code
        said = capfd.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, said.err
        assert (said.out, "Traceback" in said.err) == ("", False)
        assert sorted(source.parent.iterdir()) == before
        return lines[0]

    return run


def changed(path: Path, change: Callable[[onnx.ModelProto], Any]) -> Path:
    model = onnx.load(network(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("kept", [0, 1, 100, 3000, 20000])
def test_truncated(tmp_path: Path, fails: Fails, kept: int) -> None:
    source = network(tmp_path / "model.onnx")
    source.write_bytes(source.read_bytes()[:kept])
    line = fails(source, 4)
    assert "model.onnx: not a whole ONNX file (" in line
    assert line.endswith("; export it again")


def test_text_with_the_ending_of_onnx(tmp_path: Path, fails: Fails) -> None:
    source = tmp_path / "model.onnx"
    source.write_text("<html>404</html>")
    assert "not a whole ONNX file" in fails(source, 4)


@pytest.mark.parametrize(
    ("version", "code", "words"),
    [
        (9, 5, "opset 9; expected 13 or newer: export it with --opset 20"),
        (99, 5, "opset 99; onnx .* here knows up to [0-9]+: export it with --opset 20"),
    ],
)
def test_wrong_opset(tmp_path: Path, fails: Fails, version: int, code: int, words: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    assert re.search(words, fails(changed(tmp_path / "model.onnx", change), code))


def test_unsupported_operator_is_named_with_its_layer(tmp_path: Path, fails: Fails) -> None:
    def change(model: onnx.ModelProto) -> None:
        node = model.graph.node[2]
        node.op_type, node.domain = "Deformable", "some.where"
        node.metadata_props.add(
            key="pkg.torch.onnx.name_scopes", value="['', 'features', 'features.3', 'deformable']"
        )
        model.opset_import.add(domain="some.where", version=1)

    line = fails(changed(tmp_path / "model.onnx", change), 5)
    assert "operator some.where.Deformable of layer features.3 is not known here" in line


def test_unsupported_operator_without_a_layer_is_named_by_its_node(tmp_path: Path, fails: Fails) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[2].op_type = "Convolve"

    assert "operator Convolve of node second" in fails(changed(tmp_path / "model.onnx", change), 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, fails: Fails, bad: float) -> None:
    def change(model: onnx.ModelProto) -> None:
        held = numpy_helper.to_array(model.graph.initializer[1]).copy()
        held[0, 0, 0, :2] = bad
        model.graph.initializer[1].CopyFrom(numpy_helper.from_array(held, "w2"))

    line = fails(changed(tmp_path / "model.onnx", change), 4)
    assert "weight w2 holds NaN or infinity in 2 of 576 numbers" in line
    assert line.endswith("take an earlier checkpoint")


def test_calibration_without_images(tmp_path: Path, fails: Fails) -> None:
    source = network(tmp_path / "model.onnx")
    line = fails(source, 4, "--precision", "int8")
    assert "--precision int8 is calibrated on images and received none; give --images DIR" in line
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/empty" in fails(source, 4, "--precision", "int8", "--images", str(tmp_path / "empty"))
    line = fails(source, 4, "--precision", "int8", "--images", str(tmp_path / "nowhere"))
    assert "nowhere: no such folder" in line


def test_output_that_cannot_be_written(tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    source = network(tmp_path / "model.onnx")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    line = fails(source, 5)
    assert line.endswith("cannot be written (Read-only file system); give another --output")


def test_a_folder_that_takes_no_file(tmp_path: Path, fails: Fails) -> None:
    line = fails(network(tmp_path / "model.onnx"), 5, "--precision", "fp16", "-o", "/proc/no")
    assert "/proc/no/model.fp16.onnx: cannot be written, since /proc takes no file" in line
    assert "errno" not in line.lower()


def test_words_that_make_no_sense(tmp_path: Path, fails: Fails) -> None:
    source = network(tmp_path / "model.onnx")
    assert "--precision int4: expected fp32, fp16, int8" in fails(source, 2, "--precision", "int4")
    assert "--max-flip 3.0: expected a share" in fails(source, 2, "--precision", "int8", "--max-flip", "3")
    assert "--layout nchw is of the pixels that --embed-preprocess takes; give both" in fails(
        source, 2, "--precision", "fp16", "--layout", "nchw"
    )
    assert "--opset 3: expected 17 to 23" in fails(source, 2, "--opset", "3", "--dry-run")
    assert "--calibration mean: expected auto" in fails(
        source, 2, "--precision", "int8", "--calibration", "mean"
    )
