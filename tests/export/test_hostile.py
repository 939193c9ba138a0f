"""Broken and hostile input to `edgeprune export FILE.onnx --precision ...`: one line, an exit code, nothing written."""

from __future__ import annotations

import errno
import json
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
from edgeprune.commands import deploy
from edgeprune.export import precision
from edgeprune.images import Preprocess

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
    assert "nowhere: there is no such folder" in line


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
    for word in ("3", "300%"):
        assert "--max-flip 3.0: expected a share" in fails(
            source, 2, "--precision", "int8", "--max-flip", word
        )
    assert "Invalid value for '--max-flip'" in fails(source, 2, "--precision", "int8", "--max-flip", "few")
    assert "--layout nchw is of the pixels that --embed-preprocess takes; give both" in fails(
        source, 2, "--precision", "fp16", "--layout", "nchw"
    )
    assert "--opset 3: expected 17 to 23" in fails(source, 2, "--opset", "3", "--dry-run")
    assert "--calibration mean: expected auto" in fails(
        source, 2, "--precision", "int8", "--calibration", "mean"
    )


ENGINE = ("--to", "tensorrt-rtx", "--compute-capability", "8.6")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_engine_of_weights_that_are_no_numbers(tmp_path: Path, fails: Fails, value: float) -> None:
    def change(model: onnx.ModelProto) -> None:
        held = next(t for t in model.graph.initializer if t.name == "w2")
        numbers = numpy_helper.to_array(held).copy()
        numbers[0, 0] = value
        held.CopyFrom(numpy_helper.from_array(numbers, "w2"))

    line = fails(changed(tmp_path / "model.onnx", change), 4, *ENGINE)
    assert "weight w2 holds NaN or infinity in 9 of 576 numbers" in line


@pytest.mark.parametrize("words", [ENGINE, ("--precision", "fp16"), ("--precision", "fp16", "--dry-run")])
def test_a_fixed_batch_takes_no_other(tmp_path: Path, fails: Fails, words: tuple[str, ...]) -> None:
    source = network(tmp_path / "model.onnx", batch=1)
    for batch in ("1:8:32", "4"):
        line = fails(source, 2, *words, "--batch", batch)
        assert f"--batch {batch}: the batch of model.onnx is fixed at 1; export it again" in line


def test_an_engine_of_a_truncated_file_or_of_an_operator_nobody_knows(tmp_path: Path, fails: Fails) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = network(tmp_path / "model.onnx", extra="Bessel")
    line = fails(source, 5, *ENGINE)
    assert re.search(
        r"model.onnx: not taken by tensorrt_rtx [0-9.]+: operator Bessel of node odd_layer: ", line
    )
    source.write_bytes(source.read_bytes()[:3000])
    assert "model.onnx: not a whole ONNX file (" in fails(source, 4, *ENGINE)
    assert "model.onnx: not a whole ONNX file (" in fails(
        source, 4, "--precision", "fp16", "--images", str(tmp_path)
    )


def test_half_precision_is_not_lowered_again(tmp_path: Path, fails: Fails) -> None:
    source = network(tmp_path / "model.onnx")
    half = precision.lower(source, tmp_path / "half.onnx", "fp16").path
    assert "half.onnx: is fp16 already; give the float32 file" in fails(half, 1, "--precision", "int8")


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ("123,116,103", "0.2,0.2,0.2", "--mean 123,116,103: expected numbers from 0 to 1"),
        ("0.5,0.5,0.5", "0.2,0,0.2", "--std 0.2,0,0.2: expected numbers above 0 to 1"),
    ],
)
def test_normalisation_is_of_pixels_up_to_1(
    tmp_path: Path, fails: Fails, mean: str, std: str, said: str
) -> None:
    assert said in fails(network(tmp_path / "model.onnx"), 2, "--mean", mean, "--std", std)


def test_images_that_cannot_be_read_prove_nothing(
    tmp_path: Path, fails: Fails, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    source = network(tmp_path / "model.onnx")
    words = ("--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--embed-preprocess", "--images", str(folder))
    assert "nothing can be proved or calibrated without images" in fails(source, 4, *words, "--dry-run")
    (folder / "a.jpg").write_bytes(b"no picture")
    assert main(["export", str(source), *words[:4], "-o", str(tmp_path / "out")]) == 0
    capfd.readouterr()
    line = fails(tmp_path / "out" / "model.described.onnx", 4, "--precision", "int8", "--images", str(folder))
    assert "nothing can be proved or calibrated without images" in line


@pytest.mark.parametrize("kept", [3000, None])
def test_no_bundle_of_a_broken_file(tmp_path: Path, fails: Fails, kept: int | None) -> None:
    def change(model: onnx.ModelProto) -> None:
        held = next(t for t in model.graph.initializer if t.name == "w2")
        held.CopyFrom(numpy_helper.from_array(np.full((8, 8, 3, 3), np.nan, np.float32), "w2"))

    source = changed(tmp_path / "model.onnx", change)
    source.write_bytes(source.read_bytes()[:kept])
    for words in ((), ("--dry-run",)):
        line = fails(source, 4, "--bundle", str(tmp_path / "board"), *words)
        assert ("not a whole ONNX file" if kept else "weight w2 holds NaN") in line


def test_a_dry_run_without_images_asks_nothing_of_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = network(tmp_path / "model.onnx")
    for words in (ENGINE, ("--precision", "fp16")):
        assert main(["export", str(source), *words, "--dry-run", "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["plan"]["parity_images"] == 0


@pytest.mark.parametrize(
    ("size", "found", "shown"),
    [(32, 9999, 2048), (128, 9999, 2048), (224, 9999, 668), (512, 9999, 512), (32, 40, 40)],
)
def test_small_images_prove_in_larger_numbers(size: int, found: int, shown: int) -> None:
    assert deploy.parity_images(Preprocess((size, size)), found) == shown
