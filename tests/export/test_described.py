"""`edgeprune export FOREIGN.onnx --mean ... --std ...`: what the user says is in the file, for all commands to read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgeprune import artifact
from edgeprune.cli.app import main
from edgeprune.commands import files
from edgeprune.runtime import metadata

from .small_graphs import SIZE, images, network

SAID = ("--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return network(tmp_path / "net.onnx", batch=1)


@pytest.fixture
def names(tmp_path: Path) -> Path:
    file = tmp_path / "names.txt"
    file.write_text("a\nb\nc\nd\ne\n")
    return file


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    folder = tmp_path / "camera"
    folder.mkdir()
    for i, batch in enumerate(images(8)):
        pixels = np.clip(batch.transpose(1, 2, 0) * 50 + 128, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((24, 20)).save(folder / f"{i}.png")
    return folder


def test_the_copy_says_it_itself(
    foreign: Path, names: Path, camera: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(foreign), *SAID, "--classes", str(names)]) == 0
    copy = foreign.with_name("net.described.onnx")
    artifact.sidecar(copy).unlink()  # the file alone goes to the board
    held = metadata.from_props({p.key: p.value for p in onnx.load(copy).metadata_props})
    assert (held["preprocess"]["mean"], held["preprocess"]["size"]) == ([0.4, 0.5, 0.6], [SIZE, SIZE])
    assert files.preprocess(artifact.read(copy)).std == (0.2, 0.25, 0.3)
    assert files.classes(artifact.read(copy)) == ("a", "b", "c", "d", "e")
    capsys.readouterr()
    assert main(["predict", str(copy), "--images", str(camera), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["name"] in "abcde"


def test_int8_is_calibrated_as_was_said(
    foreign: Path, camera: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(foreign), *SAID, "--precision", "int8", "--images", str(camera), "--max-flip", "1"]
    assert main([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert main([*words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in made["files"]] == plan["files"] == ["net.described.onnx", "net.int8.onnx"]
    lowered = artifact.read(foreign.with_name("net.int8.onnx"))
    assert lowered.parents == (artifact.sha256(foreign.with_name("net.described.onnx")),)
    assert files.preprocess(lowered).mean == (0.4, 0.5, 0.6)


def test_a_bundle_of_it(foreign: Path, names: Path, camera: Path, tmp_path: Path) -> None:
    out = tmp_path / "board"
    words = ["--bundle", str(out), "--images", str(camera), "--max-flip", "1", "--classes", str(names)]
    assert main(["export", str(foreign), *SAID, *words]) == 0
    assert json.loads((out / "preprocessing.json").read_text())["mean"] == [0.4, 0.5, 0.6]
    assert (out / "labels.txt").read_text().split() == list("abcde")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            (),
            2,
            "is ONNX already; give --precision fp16 or int8, --embed-preprocess, --mean and --std, or --to",
        ),
        (("--mean", "0.5,0.5,0.5"), 2, "--mean: expected both --mean and --std"),
        (("--mean", "0.5", "--std", "1,1,1"), 2, "--mean 0.5: expected three numbers"),
        ((*SAID, "--size", "99"), 2, "--size 99: input images of net.onnx is 16x16"),
        ((*SAID, "--interpolation", "magic"), 1, "interpolation 'magic' is not known"),
        (
            ("--precision", "int8", "--images", "CAMERA"),
            1,
            "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
        ),
    ],
)
def test_helpful_errors(
    foreign: Path,
    camera: Path,
    words: tuple[str, ...],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(camera) if word == "CAMERA" else word for word in words]
    assert main(["export", str(foreign), *given]) == code
    assert said in capsys.readouterr().err
    assert not list(foreign.parent.glob("*.described.onnx"))


def test_names_must_be_as_many_as_the_answers(
    foreign: Path, names: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names.write_text("a\nb\n")
    assert main(["export", str(foreign), *SAID, "--classes", str(names)]) == 2
    assert "2 names, and the network answers 5 classes" in capsys.readouterr().err
    assert main(["export", str(foreign.parent), *SAID]) == 2
    assert "--mean is for an ONNX file from elsewhere; a checkpoint knows its own" in capsys.readouterr().err
