"""What bench prints: why a verdict is none, what a rate is, warnings once, and the columns of trtexec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgeprune.bench import trtexec, warned
from edgeprune.bench.compare import Verdict
from edgeprune.bench.result import BenchResult, Measured
from edgeprune.bench.statistics import summary
from edgeprune.cli import bench as words


def row(name: str = "runs/slim.onnx", warnings: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    config = {"runtime": "ort", "batch": 1, "threads": 1, "mode": "steady", "streams": 1}
    fields: dict[str, Any] = {
        "model": Measured(name),
        "config": {**config, **changes.pop("config", {})},
        "host": {},
        "latency_ms": summary([0.001, 0.002]),
        "throughput_ips": 600.0,
        "tool_version": "0.1.0",
        "created": "2026-11-21T05:00:00Z",
        "warnings": warnings,
        **changes,
    }
    return BenchResult(**fields).to_json()


def printed(*rows: dict[str, Any], width: int = 110) -> str:
    console = Console(width=width, record=True, color_system=None)
    words.show({"results": list(rows), "warnings": []}, console)
    return console.export_text()


def verdict(word: Any, why: str) -> Verdict:
    return Verdict("dense", word, 1.35, 1.22, 1.47, 0.99, why)


def test_a_verdict_that_is_none_says_why() -> None:
    few = "7 rounds are too few to say; 8 are needed: measure longer"
    out = printed(row("dense.onnx"), row(verdict=verdict("cannot say", few)))
    assert "cannot say: 1.35x (99%: 1.22 to 1.47)" in out
    assert f"slim.onnx: cannot say: {few}" in out
    assert "the interval" not in printed(row(verdict=verdict("faster", "the interval excludes 1")))


def test_throughput_shows_the_rate_that_is_compared_however_narrow() -> None:
    config = {"mode": "throughput", "streams": 1}
    out = printed(row(config=config, verdict=verdict("faster", "the interval excludes 1")), width=60)
    assert "Images/s" in out
    assert "600" in out
    assert "the verdict compares images a second" in " ".join(out.split())
    assert "1 stream " in printed(row(config=config)), "one stream is no plural"


def test_a_start_has_no_rate() -> None:
    out = printed(row(config={"mode": "cold"}, throughput_ips=None))
    assert "Images/s" not in out
    assert "cold" in out


def test_warnings_come_once_and_name_their_rows() -> None:
    busy, own = "the machine was busy", "the warm-up did not settle"
    rows = [
        row(config={"batch": b, "threads": t}, warnings=(busy, own) if b == 8 else (busy,))
        for b in (1, 8)
        for t in (1, 2)
    ]
    assert warned.lines(rows) == [
        busy,
        f"slim.onnx, batch 8, threads 1; slim.onnx, batch 8, threads 2: {own}",
    ]
    many = [row(config={"batch": b}, warnings=(own,) if b else ()) for b in range(6)]
    assert warned.lines(many) == [f"5 of 6 rows (slim.onnx, batch 1; slim.onnx, batch 2; ...): {own}"]
    assert printed(*rows).count(busy) == 1


def test_names_keep_their_folder_only_where_they_must() -> None:
    assert warned.short(["a/dense.onnx", "b/slim.onnx"]) == ["dense.onnx", "slim.onnx"]
    assert warned.short(["a/model.onnx", "b/model.onnx"]) == ["a/model.onnx", "b/model.onnx"]
    out = printed(row("dense/model.onnx"), row("slim/model.onnx"), width=44)
    assert "slim/model.onnx" in out


def test_trtexec_shows_gpu_time_and_says_what_p50_is(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    line = "min = 1 ms, max = 3 ms, mean = 2 ms, median = {} ms, percentile(99%) = 2.9 ms"
    file.write_text(
        f"[I] Latency: {line.format(1.5)}\n[I] GPU Compute Time: {line.format(1.25)}\n[I] Throughput: 600 qps\n"
    )
    out = printed(trtexec.read(file, "0.1.0").to_json())
    assert "GPU p50 ms" in out
    assert "1.25" in out
    assert "Queries/s" in out
    assert "p50, p90 and p99 are its host latency (H2D + GPU + D2H)" in " ".join(out.split())


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_name_is_not_broken_at_any_width(width: int) -> None:
    parts = {name: summary([0.001]) for name in ("h2d", "d2h", "enqueue")}
    out = printed(
        row("a/dense.onnx", parts_ms=parts, gpu_ms=summary([0.001])), row("a/slim.onnx"), width=width
    )
    assert "dense.onnx" in out
    assert "slim.onnx" in out
