"""`edgeprune export RUN --precision int8 --precision fp16`, from a checkpoint to files, report and advice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeprune import checkpoint
from edgeprune.cli.app import main
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions

Make = Callable[..., Path]
DIGITS = "edgeprune.digits_net:digits_net"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    network, _ = open_network(DIGITS, ModelOptions(weights="none", classes="2", size=16), ("cat", "dog"))
    checkpoint.write(folder / "model.safetensors", network)
    return folder


def test_both_precisions_from_a_checkpoint(
    run: Path, tmp_path: Path, make_images: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images", count=6)
    words = ["export", str(run), "--images", str(images), "--max-flip", "1", "--calibration", "minmax"]
    assert main([*words, "--precision", "int8", "--precision", "fp16", "--threads", "1", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert {p.name for p in run.glob("*.onnx")} == {"model.onnx", "model.fp16.onnx", "model.int8.onnx"}
    assert said["recommended"]["take"] in ("fp32", "int8")
    assert set(said["recommended"]) >= {"fp32_ms", "int8_ms", "int8_is", "threads"}
    report = json.loads((run / "report.json").read_text())
    assert [s["step"] for s in report["steps"]] == ["network -> fp32", "fp32 -> fp16", "fp32 -> int8"]
    last = report["steps"][2]
    assert last["parents"] == [report["steps"][0]["sha256"]]
    samples, worst = last["parity"]["samples"], last["parity"]["worst"]
    assert [s["image"] for s in samples] == report["images"]
    assert len(worst) == min(10, len(samples))
    assert worst[0] == max(samples, key=lambda s: s["max_abs"])
    assert (images / worst[0]["image"]).is_file()
    assert main(["export", str(run), "--images", str(images), "--precision", "int8"]) == 1
    assert "model.int8.onnx exists; --force replaces it" in capfd.readouterr().err
