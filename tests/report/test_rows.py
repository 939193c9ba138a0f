"""What bench measured, on the page: its history, the ways of measuring told apart, verdicts and diagnoses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeprune.report.page import render
from tests.report.conftest import bench_row, text_of, write

jinja2 = pytest.importorskip("jinja2")


def test_rows_of_several_devices_say_which(run: Path) -> None:
    assert "Device" not in text_of(render([run]))
    other = {**bench_row("prune-net-1/model.onnx", 5.0, 0.5), "host": {"board": "Test Board"}}
    write(run / "board.json", [other])
    said = text_of(render([run]))
    assert "model.onnx Test Board ort" in said
    assert "model.onnx Test CPU, Linux ort" in said


def told(run: Path, *rows: dict[str, Any]) -> None:
    """The history as bench appends it, its last line torn."""
    (run / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"schema": "edgepr')


def row_of(p50: float, **config: Any) -> dict[str, Any]:
    row = bench_row("prune-net-1/model.onnx", p50, 0.5)
    return {**row, "config": {**row["config"], "mode": "steady", "input": "random", **config}}


def test_the_history_that_bench_writes_fills_the_page(run: Path) -> None:
    (run / "bench.json").unlink()
    told(run, row_of(2.5))
    said = text_of(render([run]))
    assert "ort fp32, steady, batch 1, 1 thread, random input, on Test CPU, Linux" in said
    assert "2.5 ms (p90 2.75) faster: 1.80x" in said


def test_a_row_in_the_history_and_in_a_file_is_one_and_a_newer_one_replaces_it(run: Path) -> None:
    old, new = ({**row_of(p50), "created": f"2026-01-0{day}T"} for p50, day in ((2.5, 1), (3.5, 2)))
    told(run, old, new)
    write(
        run / "bench.json", {"schema": "edgeprune.bench-results/1", "results": [new], "output": "bench.json"}
    )
    said = text_of(render([run]))
    assert "2.5 ms" not in said
    assert said.count("ort fp32 steady 1 1 3.5 3.85") == 1
    assert "1 earlier row in the history is not shown" in said


def test_ways_of_measuring_are_told_apart_and_the_plainest_is_the_headline(run: Path) -> None:
    (run / "bench.json").unlink()
    paced = {**row_of(9.0, mode="paced", fps=30), "throughput_ips": 1091}
    foreign = {**row_of(1.5, batch=None, threads=None, runtime="tensorrt"), "gpu_ms": {"p50": 1.25}}
    told(run, row_of(24.0, mode="cold"), row_of(2.5), row_of(1.75, threads=2), paced, foreign)
    said = text_of(render([run]))
    assert "2.5 ms (p90 2.75)" in said, "steady on one thread, though the newest rows are others"
    assert "ort fp32 cold 1 1 24 26.4 – – – faster" in said, "no images a second when cold"
    assert "ort fp32 steady 1 2 1.75" in said
    assert "paced, 30 frames a second" in said
    assert "1091" not in said
    assert "tensorrt fp32 steady – – 1.5 1.65 – 1.25 666.7" in said
    assert "None" not in said


def test_a_run_measured_in_another_way_says_so(run: Path, tmp_path: Path) -> None:
    told(run, row_of(2.5, threads=2))
    (run / "bench.json").unlink()
    other = tmp_path / "prune-net-2"
    other.mkdir()
    (other / "bench.jsonl").write_text(
        json.dumps({**row_of(7.0), "model": {"name": "prune-net-2/model.onnx"}}) + "\n"
    )
    said = text_of(render([run, other]))
    assert "7 ms (p90 7.7) faster" in said
    assert (
        "2.5 ms (p90 2.75): model.onnx, ort fp32, steady, batch 1, 2 threads, random input, on Test CPU"
        in said
    )


def test_a_verdict_names_its_baseline_why_and_what_was_forced(run: Path) -> None:
    (run / "bench.json").unlink()
    row = row_of(2.5)
    row["verdict"] |= {"word": "cannot say", "vs": "runs/r18/model.onnx", "why": "7 rounds are too few"}
    row["verdict"]["forced"] = ["batch 1 against 8"]
    told(run, row)
    assert (
        "cannot say: 1.80x (99%: 1.70 to 1.90) against r18/model.onnx: 7 rounds are too few; forced, although batch 1"
        in text_of(render([run]))
    )


def test_what_diagnose_found_is_on_the_page(run: Path) -> None:
    (run / "bench.json").unlink()
    told(
        run,
        {
            **row_of(2.5),
            "diagnosis": [{"kind": "memory", "text": "memory-bound: 34% of the time", "layers": []}],
        },
    )
    said = text_of(render([run]))
    assert "What holds it back" in said
    assert "memory-bound: 34% of the time" in said
