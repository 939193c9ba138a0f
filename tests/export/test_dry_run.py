"""`edgeprune export --dry-run` names every file of the real run, refuses what that refuses, and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune import checkpoint
from edgeprune.cli.app import main
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions

DIGITS = "edgeprune.digits_net:digits_net"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network, _ = open_network(DIGITS, ModelOptions(weights="none", classes="2", size=16), ("cat", "dog"))
    checkpoint.write(tmp_path / "run" / "model.safetensors", network)
    return tmp_path / "run"


@pytest.fixture
def camera(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path / "images", count=6)


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(run: Path, camera: Path, capfd: pytest.CaptureFixture[str]) -> Ask:
    """The JSON of an export of the run."""

    def asked(*words: str, code: int = 0) -> dict[str, Any]:
        capfd.readouterr()
        given = [
            "export",
            str(run),
            "--images",
            str(camera),
            "--max-flip",
            "1",
            "--threads",
            "1",
            "--json",
            *words,
        ]
        assert main(given) == code
        said = capfd.readouterr()
        return json.loads(said.out) if code == 0 else {"error": said.err.strip().splitlines()[-1]}

    return asked


MANY = (
    "--precision",
    "fp32",
    "--precision",
    "fp16",
    "--precision",
    "int8",
    "--calibration",
    "minmax",
    "--top-k",
    "2",
)


def test_it_names_the_files_that_the_real_run_writes(run: Path, ask: Ask) -> None:
    before = set(run.iterdir())
    plan = ask(*MANY, "--dry-run")["plan"]
    assert set(run.iterdir()) == before
    assert (plan["folder"], plan["batch"], plan["opset"]) == (str(run), "1", 20)
    made = ask(*MANY)
    assert plan["parity_images"] == made["parity_images"] > 0
    assert [row["file"] for row in made["files"]] == plan["files"]
    assert {p.name for p in run.glob("*.onnx")} == set(plan["files"])
    assert [row["precision"] for row in made["files"]] == ["fp32", "fp32", "fp16", "fp16", "int8", "int8"]
    assert all(row["relative"] is not None and row["images"] and row["bytes"] for row in made["files"])


def test_a_plan_for_a_bundle(run: Path, ask: Ask, tmp_path: Path) -> None:
    out = tmp_path / "board"
    plan = ask("--bundle", str(out), "--dry-run")["plan"]
    assert not out.exists()
    assert plan["folder"] == str(out)
    made = ask("--bundle", str(out))
    assert [row["file"] for row in made["files"]] == ["model.onnx", "model.fp16.onnx", "model.int8.onnx"]
    assert set(made["bundle"]["files"]) == {p.name for p in out.iterdir()}
    assert set(plan["files"]) <= set(made["bundle"]["files"])
    assert "exists; --force replaces it" in ask("--bundle", str(out), "--dry-run", code=1)["error"]


def test_what_the_real_run_refuses(run: Path, ask: Ask, tmp_path: Path) -> None:
    assert "--opset 3: expected 17 to 23" in ask("--opset", "3", "--dry-run", code=2)["error"]
    assert "--top-k 99: the network has 2 classes" in ask("--top-k", "99", "--dry-run", code=2)["error"]
    (tmp_path / "none").mkdir()
    error = ask("--images", str(tmp_path / "none"), "--dry-run", code=4)["error"]
    assert "nothing can be proved or calibrated without images" in error
    (run / "model.onnx").touch()
    assert "model.onnx exists; --force replaces it" in ask("--dry-run", code=1)["error"]


def test_the_terminal_shows_every_file(run: Path, camera: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(run), "--images", str(camera), "--max-flip", "1", "--threads", "1", *MANY]
    assert main(words) == 0
    said = capsys.readouterr().out
    for name in ("model.onnx", "model.e2e.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8.e2e.onnx"):
        assert name in said
    assert "Corrected cosine" not in said
