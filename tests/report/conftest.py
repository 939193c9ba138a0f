"""A finished run as the commands write it, and what a reader of its page sees."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished and measured prune run, as the commands write it."""
    path = tmp_path / "prune-net-1"
    path.mkdir()
    write(path / "run.json", {"command": "prune", "model": "runs/adapt-net-1"})
    results = {
        "accuracy_before": 0.91,
        "accuracy": 0.905,
        "macs": 40_000_000,
        "dense_macs": 100_000_000,
        "chosen_step": 6,
    }
    write(
        path / "done.json",
        {"command": "prune", "model": "runs/adapt-net-1", "finished": "2026-01-02", "results": results},
    )
    (path / "config.toml").write_text('macs = "0.4"\nkeep = ["stem.*"]\n')
    lines = [{"stage": "prune", "step": s, "loss": 1 / (s + 1), "scores": {"im": 0.1 * s}} for s in range(10)]
    lines.append({"stage": "prune", "step": 10, "loss": None})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    document = {
        "format": 1,
        "spec": "package.nets:net",
        "dense": {"conv1.weight": [64, 3, 3, 3], "conv2.weight": [64, 64, 3, 3], "fc.weight": [10, 64]},
        "history": [
            {"command": "adapt", "objective": "shot", "finished": "2026-01-01"},
            {"command": "prune"},
        ],
    }
    shapes = {"conv1.weight": (24, 3, 3, 3), "conv2.weight": (64, 24, 3, 3), "fc.weight": (10, 64)}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors", {"edgeprune": json.dumps(document)})
    parity = {"n": 256, "relative": 2e-6, "flips": 0, "ties": 1, "worst": [{"index": 3, "max_abs": 1e-5}]}
    write(path / "model.onnx.json", {"meta": {"macs": 40_000_000, "parity": parity}})
    write(path / "bench.json", [bench_row("prune-net-1/model.onnx", 2.0, 0.5)])
    return path


def bench_row(name: str, p50: float, speedup: float) -> dict[str, Any]:
    return {
        "schema": "edgeprune.bench/1",
        "model": {"name": name, "bytes": 1_500_000, "macs": 40_000_000},
        "config": {"runtime": "ort", "precision": "fp32", "batch": 1, "threads": 1},
        "host": {"cpu": {"name": "Test CPU"}, "gpu": None, "os": "Linux"},
        "latency_ms": {"p50": p50, "p90": p50 * 1.1, "p99": None},
        "throughput_ips": 1000 / p50,
        "verdict": {"word": "faster", "speedup": 1.8, "ci_low": 1.7, "ci_high": 1.9, "confidence": 0.99},
    }


def text_of(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", body))
