"""bench as a command: sweeps, modes, refusals, saved baselines, diagnosis, files and history; without torch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.bench import power, schema
from edgeprune.bench.result import BenchResult
from edgeprune.cli.app import main
from edgeprune.commands.bench import bench
from edgeprune.device_options import BenchOptions
from edgeprune.errors import DataError, OutputExists, UsageError

QUICK = BenchOptions(seconds=0.04, runs=10, warmup=0.02)


def network(path: Path, width: int, size: int = 24) -> Path:
    """images (batch, 3, size, size) -> two convolutions of `width` -> 2 logits."""
    draw = np.random.default_rng(0)
    shapes = {"a.weight": (width, 3, 3, 3), "b.weight": (width, width, 3, 3), "head": (width, 2)}
    weights = [numpy_helper.from_array(draw.standard_normal(s).astype("f4"), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["images", "a.weight"], ["x"], "a", pads=[1] * 4),
        helper.make_node("Conv", ["x", "b.weight"], ["y"], "b", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["y"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flat"),
        helper.make_node("MatMul", ["flat", "head"], ["logits"], "head"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "net", [images], [logits], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    return str(network(tmp_path / "dense.onnx", 32)), str(network(tmp_path / "slim.onnx", 9))


def test_a_sweep_has_a_row_for_each_artefact_batch_and_threads(pair: tuple[str, str]) -> None:
    dense, slim = pair
    rows = bench(replace(QUICK, artifacts=(slim,), baseline=dense, batch="1,3", threads="1,2")).results
    told = [(r.model.name.rpartition("/")[2], r.config["batch"], r.config["threads"]) for r in rows]
    names = ("dense.onnx", "slim.onnx")
    assert told == [(n, b, t) for b in (1, 3) for t in (1, 2) for n in names]
    assert [r.verdict is None for r in rows] == [True, False] * 4
    assert all(len(r.rounds_ms) >= 20 for r in rows)
    held = rows[0].memory or {}
    assert held["process_peak_bytes"] > 0
    assert held["runner_peak_bytes"] is not None or rows[0].reasons["memory.runner_peak_bytes"]


@pytest.mark.parametrize("mode", ["steady", "paced", "cold", "throughput"])
def test_every_mode_writes_rows_of_the_published_schema(pair: tuple[str, str], mode: str) -> None:
    dense, slim = pair
    own = {"paced": {"fps": 400.0}, "throughput": {"streams": 2}}.get(mode, {})
    report = bench(replace(QUICK, artifacts=(slim,), baseline=dense, mode=mode, **own))  # type: ignore[arg-type]
    jsonschema.validate(json.loads(json.dumps(report.to_json(), allow_nan=False)), schema.document())
    document = schema.row()
    for row in report.results:
        plain = json.loads(json.dumps(row.to_json(), allow_nan=False))
        jsonschema.validate(plain, document)
        assert BenchResult.from_json(plain) == row
        assert row.config["mode"] == mode
        nulls = {k for k in ("power", "layers", "gpu_ms", "parts_ms", "throughput_ips") if plain[k] is None}
        assert row.model.inputs == ({"name": "images", "shape": ["batch", 3, 24, 24], "dtype": "float32"},)
        assert nulls <= set(row.reasons), "a null has its reason"
    assert report.results[1].verdict is not None
    parts = report.results[0].parts_ms
    assert (set(parts) if parts else None) == ({"load", "first"} if mode == "cold" else None)
    assert report.results[0].config["streams"] == (2 if mode == "throughput" else 1)


def test_what_went_in_is_recorded(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("random", "zeros"):
        (row,) = bench(replace(QUICK, artifacts=pair[:1], input=kind)).results
        assert (row.config["input"], row.config["images"]) == (kind, None)
    with pytest.raises(UsageError, match="input 'noise': expected random or zeros"):
        bench(replace(QUICK, artifacts=pair[:1], input="noise"))


def test_a_processor_that_other_work_had_is_told(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.thread_time", lambda: 0.0)  # as if this thread never ran
    alone, many = bench(replace(QUICK, artifacts=pair[:1], threads="1,2")).results
    said = "other work had the processor for 100% of the time"
    assert any(said in line for line in alone.warnings)
    assert not any(said in line for line in many.warnings), "the calling thread waits for others there"


def test_a_rate_is_that_of_the_mode(pair: tuple[str, str]) -> None:
    (paced,) = bench(replace(QUICK, artifacts=pair[1:], mode="paced", fps=100.0)).results
    missed = paced.config["missed_frames"]
    assert paced.throughput_ips == pytest.approx(100 * 16 / (16 + missed)), "two rounds of 8 frames"
    (cold,) = bench(replace(QUICK, artifacts=pair[1:], mode="cold")).results
    assert cold.throughput_ips is None
    (steady,) = bench(replace(QUICK, artifacts=pair[1:])).results
    assert steady.throughput_ips == pytest.approx(1e3 / steady.latency_ms.p50)


def test_diagnosis_names_the_padded_layer(pair: tuple[str, str]) -> None:
    dense, slim = pair
    report = bench(replace(QUICK, artifacts=(slim,), baseline=dense, diagnose=True))
    first, second = report.results
    assert first.diagnosis is None
    assert second.diagnosis is not None
    assert second.diagnosis[0]["kind"] == "work"
    padded = next(f for f in second.diagnosis if f["kind"] == "padding")
    assert any(layer["name"] == "b" and layer["widths"] == "9 -> 9" for layer in padded["layers"])
    assert second.layers is not None


def test_a_saved_result_is_a_baseline_when_it_is_alike(pair: tuple[str, str], tmp_path: Path) -> None:
    dense, slim = pair
    file = tmp_path / "dense.json"
    bench(replace(QUICK, artifacts=(dense,), output=file))
    (row,) = bench(replace(QUICK, artifacts=(slim,), baseline=str(file))).results
    assert row.verdict is not None
    assert row.verdict.vs.startswith(row.model.name.replace("slim", "dense") + " of 20")
    assert row.verdict.why.endswith("not measured together")
    with pytest.raises(UsageError, match=r"not comparable: mode steady against cold; .* --force-compare"):
        bench(replace(QUICK, artifacts=(slim,), baseline=str(file), mode="cold"))
    with pytest.raises(UsageError, match=r"batch 1 against 2"):
        bench(replace(QUICK, artifacts=(slim,), baseline=str(file), batch="2"))
    forced = bench(replace(QUICK, artifacts=(slim,), baseline=str(file), batch="2", force_compare=True))
    told = forced.results[0]
    assert told.verdict is not None
    assert told.verdict.forced == ("batch 1 against 2",)
    assert "compared by force with what is unlike it (batch 1 against 2): the ratio says nothing" in " ".join(
        told.warnings
    )
    rows = json.loads(file.read_text())["results"]
    rows[0]["host"]["cpu"]["name"] = "Cortex-A78AE"
    file.write_text(json.dumps(rows))  # a bare list, as bench wrote until it had a document
    with pytest.raises(UsageError, match=r"cpu Cortex-A78AE against .*measure them alike"):
        bench(replace(QUICK, artifacts=(slim,), baseline=str(file)))
    file.write_text("{}")
    with pytest.raises(DataError, match="holds no rows; expected what bench -o wrote"):
        bench(replace(QUICK, artifacts=(slim,), baseline=str(file)))


def test_files_are_written_and_not_overwritten(pair: tuple[str, str], tmp_path: Path) -> None:
    names = {"output": tmp_path / "o.json", "csv": tmp_path / "o.csv", "markdown": tmp_path / "o.md"}
    bench(replace(QUICK, artifacts=pair, **names))  # type: ignore[arg-type]
    assert len(json.loads(names["output"].read_text())["results"]) == 2
    with names["csv"].open() as stream:
        assert [row["mode"] for row in csv.DictReader(stream)] == ["steady"] * 2
    assert names["markdown"].read_text().startswith("| artefact | runtime |")
    for key, path in names.items():
        with pytest.raises(OutputExists, match=f"{path.name} exists; --force replaces it"):
            bench(replace(QUICK, artifacts=pair, **{key: path}))  # type: ignore[arg-type]


def test_each_run_folder_remembers_what_was_measured_of_it(tmp_path: Path) -> None:
    for name in ("dense", "slim", "plain"):
        network(tmp_path / name / "model.onnx", 8)
        if name != "plain":
            (tmp_path / name / "run.json").write_text("{}")
    options = replace(QUICK, baseline=str(tmp_path / "dense"), artifacts=(str(tmp_path / "slim"),))
    bench(options)
    file = tmp_path / "slim" / "bench.jsonl"
    with file.open("a") as stream:
        stream.write('{"torn')
    bench(options)
    bench(replace(options, history=False))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["model"]["name"] for r in rows] == ["slim/model.onnx"] * 2
    assert len((tmp_path / "dense" / "bench.jsonl").read_text().splitlines()) == 2
    bench(replace(QUICK, artifacts=(str(tmp_path / "plain"),)))
    assert not (tmp_path / "plain" / "bench.jsonl").exists(), "not a run folder"


class Meter:
    source, rule, rate_hz = "meter", "all", 200.0

    def watts(self) -> float:
        return 2.0

    def rails(self) -> dict[str, float]:
        return {"all": 2.0}

    def energy_j(self) -> None:
        return None


def test_energy_is_measured_when_asked_and_null_with_a_reason_else(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = bench(replace(QUICK, artifacts=pair[:1])).results
    assert (row.power, row.reasons["power"]) == (None, "not asked for: --power 10")
    monkeypatch.setattr(power, "find", lambda device: (None, f"nothing measures the {device}"))
    (row,) = bench(replace(QUICK, artifacts=pair[:1], power=0.05)).results
    assert (row.power, row.reasons["power"]) == (None, "nothing measures the cpu")
    assert "--power 0.05 measured nothing: nothing measures the cpu" in row.warnings
    monkeypatch.setattr(power, "find", lambda device: (Meter(), ""))
    (row,) = bench(replace(QUICK, artifacts=pair[:1], power=0.05)).results
    told: Any = row.power
    assert told["mean_w"] == pytest.approx(2.0)
    assert told["net_mj"] == pytest.approx(0.0, abs=1e-9)
    assert told["rails_w"] == {"all": 2.0}
    assert "power" not in row.reasons


def test_what_trtexec_measured_needs_no_artefact(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = "[I] Latency: min = 1 ms, max = 3 ms, mean = 2 ms, median = 1.5 ms, percentile(99%) = 2.9 ms"
    (tmp_path / "log.txt").write_text(f"[11/21] {line}\n")
    assert main(["bench", "--import-trtexec", str(tmp_path / "log.txt")]) == 0
    out = capfd.readouterr().out
    assert "tensorrt" in out
    assert "1.5" in out


def test_a_table_fits_its_terminal_and_tells_the_causes(
    pair: tuple[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, slim = pair
    monkeypatch.setenv("COLUMNS", "70")
    quick = ["--seconds", "0.04", "--warmup", "0.02", "--runs", "10", "--threads", "1,2"]
    assert main(["bench", slim, "--baseline", dense, "--diagnose", *quick]) == 0
    out = capfd.readouterr().out
    assert "what holds it back" in " ".join(out.split())
    assert "Threads" in out, "what was swept is shown"
    assert max(map(len, out.splitlines())) <= 70
    assert main(["bench", slim, "--per-layer", *quick[:-2]]) == 0
    assert "Median ms" in capfd.readouterr().out


def test_all_of_it_runs_where_torch_cannot_be_imported(pair: tuple[str, str], tmp_path: Path) -> None:
    dense, slim = pair
    script = """
import sys
sys.modules["torch"] = None
from edgeprune.cli.app import main
dense, slim, folder = sys.argv[1:]
quick = ["--seconds", "0.04", "--warmup", "0.02", "--runs", "10", "--json"]
for words in (
    ["bench", slim, "--baseline", dense, "--diagnose", "--threads", "1,2", "-o", folder + "/a.json"],
    ["bench", slim, "--baseline", folder + "/a.json", "--csv", folder + "/a.csv", "--markdown", folder + "/a.md"],
    ["bench", slim, "--mode", "paced", "--fps", "400", "--io-binding", "--power", "0.05"],
    ["bench", slim, "--mode", "cold"],
    ["bench", slim, "--mode", "throughput", "--streams", "2", "--per-layer", "--spin"],
):
    code = main([*words, *quick])
    assert code == 0, (words, code)
assert main(["doctor", "--json"]) == 0
assert main(["inspect", slim, "--json"]) == 0
assert "torch" not in [m for m in sys.modules if sys.modules[m] is not None]
print("all of it", file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, dense, slim, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "all of it" in done.stderr, done.stderr
