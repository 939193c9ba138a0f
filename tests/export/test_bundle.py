"""The bundle works without EdgePrune: checksums, the example in a bare process, the script with a stand-in trtexec."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from edgeprune.cli.app import main
from edgeprune.export import bundle as bundling
from edgeprune.images import Preprocess
from edgeprune.runtime import metadata

from .small_graphs import SIZE, images, network

PRE = Preprocess((SIZE, SIZE), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), crop=0.875)
CLASSES = ["a b", "ü", "c", "d", "e"]


def source(folder: Path, **how: Any) -> Path:
    path = network(folder / "model.onnx", **how)
    model = onnx.load(path)
    for key, text in metadata.to_props({"preprocess": PRE.to_json(), "classes": CLASSES}).items():
        model.metadata_props.add(key=key, value=text)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the five patterns, larger than the network's input and not square."""
    folder = tmp_path_factory.mktemp("camera")
    for i, batch in enumerate(images(10)):
        pixels = np.clip(batch.transpose(1, 2, 0) * 50 + 128, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((40, 33)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, camera: Path) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    given = source(folder, batch=1)
    words = [
        "export",
        str(given),
        "--bundle",
        str(folder / "out"),
        "--images",
        str(camera),
        "--max-flip",
        "0.3",
    ]
    assert main(words) == 0
    return folder / "out"


def classify(folder: Path, model: str, files: list[Path], **env: str) -> list[list[str]]:
    """The example in a process in which neither edgeprune nor torch can be imported."""
    code = (
        "import sys, runpy; sys.modules['edgeprune'] = sys.modules['torch'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = [sys.executable, "-c", code, str(folder / "classify.py"), str(folder / model), *map(str, files)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd="/", env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_it_holds_what_a_device_needs(made: Path) -> None:
    held = {p.name for p in made.iterdir()}
    assert {"model.onnx", "model.fp16.onnx", "model.int8.onnx", "labels.txt", "preprocessing.json"} <= held
    assert (made / "labels.txt").read_text(encoding="utf-8").splitlines() == CLASSES
    pre = json.loads((made / "preprocessing.json").read_text())
    assert pre["mean"] == [0.4, 0.5, 0.6]
    assert pre["covered"] == [18, 18]
    assert not [p for p in made.iterdir() if p.name.startswith(".") or "candidate" in p.name]
    kinds = {n.op_type for n in onnx.load(made / "model.int8.onnx").graph.node}
    assert "DequantizeLinear" in kinds
    assert not re.search(r"/(tmp|home|work)/", "".join(p.read_text(errors="ignore") for p in made.iterdir()))


def test_checksums_hold_and_catch_a_change(made: Path, tmp_path: Path) -> None:
    words = ["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"]
    assert subprocess.run(words, cwd=made, check=False).returncode == 0
    named = {line.split("  ")[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    assert named == {p.name for p in made.iterdir()} - {"SHA256SUMS"}
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(made), str(copy)], check=True)
    with (copy / "labels.txt").open("a") as file:
        file.write("x\n")
    assert subprocess.run(words, cwd=copy, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("model", ["model.onnx", "model.int8.onnx"])
def test_the_example_says_what_predict_says(
    made: Path, camera: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(camera.iterdir())
    capsys.readouterr()
    assert main(["predict", str(made / model), "--images", str(camera), "--top", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["predictions"]
    found = classify(made, model, files)
    assert [(Path(f).name, name) for f, name, _ in found] == [(p["image"], p["name"]) for p in told]
    np.testing.assert_allclose([float(s) for *_, s in found], [p["confidence"] for p in told], atol=2e-3)


def test_the_example_with_ends_and_an_array(tmp_path: Path, camera: Path) -> None:
    out = tmp_path / "out"
    words = ["--embed-preprocess", "--layout", "nchw", "--top-k", "2", "--max-flip", "0.5"]
    assert main(["export", str(source(tmp_path)), "--bundle", str(out), "--images", str(camera), *words]) == 0
    assert sorted(p.name for p in out.glob("*.onnx")) == [
        "model.e2e.onnx",
        "model.fp16.e2e.onnx",
        "model.int8.e2e.onnx",
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    np.save(tmp_path / "one.npy", pixels)
    found = classify(out, "model.e2e.onnx", [tmp_path / "one.npy"])
    assert len(found) == 2
    assert float(found[0][2]) >= float(found[1][2])


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("--fp16 --int8", ["", "--fp16", "--int8 --fp16"]),
        ("--fp16 --stronglyTyped", ["--stronglyTyped"] * 3),
        ("--onnx", ["", "", ""]),
    ],
)
def test_the_script_speaks_the_language_of_each_release(
    made: Path, tmp_path: Path, says: str, expected: list[str]
) -> None:
    log = tmp_path / "log"
    tool = tmp_path / "trtexec"
    tool.write_text(f'#!/bin/sh\nif [ "$1" = --help ]; then echo "{says}"; else echo "$@" >> {log}; fi\n')
    tool.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", str(made / "build_engine.sh")], check=True, env=path, cwd="/")
    files = ["model", "model.fp16", "model.int8"]
    wanted = [
        f"--onnx={f}.onnx --saveEngine={f}.engine {w}".strip() for f, w in zip(files, expected, strict=True)
    ]
    assert log.read_text().splitlines() == wanted
    log.unlink()
    subprocess.run(
        ["sh", str(made / "build_engine.sh"), "int8", "--", "--useDLACore=0"], check=True, env=path
    )
    assert log.read_text().split()[-1] == "--useDLACore=0"
    assert log.read_text().count("\n") == 1


def test_the_script_without_trtexec(made: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", str(made / "build_engine.sh")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "TRTEXEC": "no-such-trtexec"},
    )
    assert done.returncode == 5
    assert "trtexec is not on the PATH" in done.stderr


def test_a_free_batch_gets_its_shapes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(source(tmp_path)), "--bundle", str(out), "--batch", "1:8:32"]) == 0
    text = (out / "build_engine.sh").read_text()
    assert '"--minShapes=images:1x3x16x16 --optShapes=images:8x3x16x16 --maxShapes=images:32x3x16x16"' in text
    skipped = json.loads((out / bundling.MANIFEST).read_text())["skipped"]
    assert "calibrated on images and received none" in skipped["int8"]
    assert "no int8: " in (out / "README.md").read_text()
    assert not list(out.glob("*int8*"))


def test_what_is_there_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = source(tmp_path), tmp_path / "out"
    words = ["export", str(given), "--bundle", str(out)]
    assert main(words) == 0
    assert main(words) == 1
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    (out / bundling.MANIFEST).unlink()
    assert main([*words, "--force"]) == 1
    assert "is no bundle of edgeprune" in capsys.readouterr().err
    assert main([*words, "--precision", "int8"]) == 2
    assert not list(tmp_path.glob(".export-*"))


def test_names_of_the_example_are_those_of_the_libraries() -> None:
    text = bundling.ENGINE_EXAMPLE.read_text()
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for name in set(re.findall(r"\brt\.(\w+)", text)):
        assert hasattr(runtime, name), name
    trt = pytest.importorskip("tensorrt_rtx")
    for word, kind in (("engine", "ICudaEngine"), ("context", "IExecutionContext")):
        for name in set(re.findall(rf"\b{word}\.(\w+)", text)):
            assert hasattr(getattr(trt, kind), name), name
    for file in (bundling.EXAMPLE, bundling.ENGINE_EXAMPLE):
        assert len([line for line in file.read_text().splitlines() if line.strip()]) <= 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: python classify.py MODEL IMAGE..."),
        (["model.onnx"], "usage: python classify.py MODEL IMAGE..."),
        (
            ["model.onnx", "gone.jpg"],
            "error: FileNotFoundError: [Errno 2] No such file or directory: 'gone.jpg'",
        ),
        (["gone.onnx", "one.npy"], "error: NoSuchFile: "),
        (["model.engine", "one.npy"], "error: "),
    ],
)
def test_the_example_says_what_is_wrong_in_one_line(
    made: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    np.save(tmp_path / "one.npy", np.zeros((SIZE, SIZE, 3), np.uint8))
    files = [str(made / w) if w == "model.onnx" else w for w in words]
    command = [sys.executable, str(made / "classify.py"), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
