"""What bench writes and reads: the published schema, CSV, Markdown, and trtexec's files."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import edgeprune
from edgeprune.bench import flat, schema, trtexec
from edgeprune.bench.compare import Verdict, compare_saved
from edgeprune.bench.result import BenchResult, Measured
from edgeprune.bench.statistics import summary
from edgeprune.commands.bench import BenchReport
from edgeprune.errors import DataError

PUBLISHED = Path(edgeprune.__file__).parent.parent / "docs" / "bench.schema.json"


def result(**changes: Any) -> BenchResult:
    names = ("runtime", "precision", "batch", "mode", "threads", "streams", "device", "input")
    made = BenchResult(
        model=Measured("a|b", "ab" * 32, (), 1234, 10**9, 5_000),
        config=dict.fromkeys(names, "x"),
        host={"cpu": {"name": "EPYC"}},
        latency_ms=summary([0.001, 0.002]),
        throughput_ips=600.0,
        tool_version="0.1.0",
        created="2026-11-21T05:00:00Z",
        parts_ms={"load": summary([0.1]), "first": summary([0.2])},
        power={"mean_w": 5.0, "gross_mj": 2.0, "net_mj": 1.0, "source": "RAPL"},
        rounds_ms=(1.0, 2.0),
        warnings=("busy",),
        verdict=Verdict("dense", "faster", 1.5, 1.4, 1.6, 0.99, "the interval excludes 1"),
        diagnosis=({"kind": "work", "text": "less"},),
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="not a checkout")
def test_the_published_schema_is_what_the_code_writes() -> None:
    assert json.loads(PUBLISHED.read_text()) == schema.document(), (
        "run: python -m edgeprune.bench.schema > docs/bench.schema.json"
    )


def test_results_satisfy_the_schema_and_others_do_not() -> None:
    checker = jsonschema.Draft202012Validator(schema.row())
    jsonschema.Draft202012Validator.check_schema(schema.document())
    good = result().to_json()
    checker.validate(good)
    checker.validate(result(parts_ms=None, power=None, verdict=None, diagnosis=None, layers=()).to_json())
    for path, value in (
        (("speed",), 1),
        (("schema",), "edgeprune.bench/0"),
        (("latency_ms", "p50"), None),
        (("verdict", "word"), "quicker"),
        (("model", "bytes"), "many"),
        (("rounds_ms",), ["1"]),
        (("config",), {}),
    ):
        bad: Any = copy.deepcopy(good)
        inner = bad
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        assert not checker.is_valid(bad), path


def test_round_trip_with_parts_rounds_and_diagnosis() -> None:
    made = result()
    assert BenchResult.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_csv_is_flat_and_unknown_is_empty() -> None:
    rows = list(csv.DictReader(io.StringIO(flat.to_csv([result(), result(power=None, parts_ms=None)]))))
    assert (rows[0]["p50_ms"], rows[0]["n"], rows[0]["speedup"]) == ("1.5", "2", "1.5")
    assert (rows[0]["load_p50_ms"], rows[0]["net_mj"], rows[0]["host"]) == ("100.0", "1.0", "EPYC")
    assert (rows[1]["load_p50_ms"], rows[1]["net_mj"], rows[1]["p99_ms"]) == ("", "", "")


def test_markdown_is_a_table_that_a_name_cannot_break() -> None:
    text = flat.to_markdown([result()])
    head, rule, row, *rest = text.splitlines()
    assert head.count("|") == rule.count("|") == row.replace("\\|", "").count("|")
    assert "a\\|b" in row
    assert "faster 1.50x [1.40, 1.60]" in row
    assert "- busy" in rest


def query(start: float, latency: float, transfer: float = 0.1) -> dict[str, float]:
    """A query of trtexec --exportTimes (TensorRT's samples/common/sampleReporting.cpp writes these keys)."""
    compute = latency - 2 * transfer
    return {
        "startEnqMs": start,
        "endEnqMs": start + 0.05,
        "startH2dMs": start,
        "endH2dMs": start + transfer,
        "startComputeMs": start + transfer,
        "endComputeMs": start + transfer + compute,
        "startD2hMs": start + transfer + compute,
        "endD2hMs": start + latency,
        "h2dMs": transfer,
        "computeMs": compute,
        "d2hMs": transfer,
        "latencyMs": latency,
    }


def test_trtexec_times(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    file.write_text(json.dumps([query(2.0 * i, 1.0 + 0.5 * (i % 3)) for i in range(9)]))
    made = trtexec.read(file, "0.1.0")
    assert (made.latency_ms.n, made.latency_ms.p50, made.latency_ms.max) == (9, 1.5, 2.0)
    assert made.gpu_ms is not None
    assert made.gpu_ms.p50 == pytest.approx(1.3)
    assert made.parts_ms is not None
    assert made.parts_ms["enqueue"].p50 == pytest.approx(0.05)
    assert made.config["transfers"] is True
    assert made.throughput_ips is None
    assert made.reasons["throughput_ips"].startswith(
        "trtexec counts queries, and nothing says how many images"
    )
    assert made.config["queries_per_s"] == pytest.approx(9 / 18e-3)
    jsonschema.validate(made.to_json(), schema.row())
    file.write_text(json.dumps([query(0, 1.0, 0.0)]))
    assert trtexec.read(file, "0.1.0").config["transfers"] is False


# The lines of trtexec's performance summary as samples/common/sampleReporting.cpp prints them.
LOG = """[11/21/2026-05:00:00] [I] TensorRT version: 10.3.0
[11/21/2026-05:00:00] [I] Model: nets/slim.onnx
[11/21/2026-05:00:00] [I] Precision: FP32+FP16
[11/21/2026-05:00:00] [I] Selected Device: Orin
[11/21/2026-05:00:04] [I] Timing trace has 1035 queries over 3.00234 s
[11/21/2026-05:00:04] [I] Throughput: 344.731 qps
[11/21/2026-05:00:04] [I] Latency: min = 2.8 ms, max = 3.4 ms, mean = 2.95 ms, median = 2.9 ms, \
percentile(90%) = 3.1 ms, percentile(95%) = 3.2 ms, percentile(99%) = 3.3 ms
[11/21/2026-05:00:04] [I] H2D Latency: min = 0.1 ms, max = 0.2 ms, mean = 0.12 ms, median = 0.11 ms, \
percentile(90%) = 0.15 ms, percentile(95%) = 0.16 ms, percentile(99%) = 0.19 ms
[11/21/2026-05:00:04] [I] GPU Compute Time: min = 2.6 ms, max = 3.1 ms, mean = 2.75 ms, median = 2.7 ms, \
percentile(90%) = 2.9 ms, percentile(95%) = 3 ms, percentile(99%) = 3.05 ms
"""


def test_trtexec_log(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text(LOG)
    made = trtexec.read(file, "0.1.0")
    assert (made.model.name, made.config["tensorrt"]) == ("slim.onnx", "10.3.0")
    assert (made.latency_ms.n, made.latency_ms.p50, made.latency_ms.p99) == (1035, 2.9, 3.3)
    assert made.latency_ms.std is None, "trtexec does not print it"
    assert made.host == {"gpu": {"name": "Orin"}}
    assert made.gpu_ms is not None
    assert (made.gpu_ms.p50, made.throughput_ips, made.config["transfers"]) == (2.7, None, True)
    assert made.config["queries_per_s"] == 344.731
    jsonschema.validate(made.to_json(), schema.row())


@pytest.mark.parametrize(
    "line",
    [
        "[I] Input inference shape : input=8x3x224x224",
        "[I] Created input binding for input with dimensions 8x3x224x224",
        "&&&& RUNNING TensorRT.trtexec [v100300] # trtexec --onnx=slim.onnx --shapes=input:8x3x224x224",
        "[I] Batch: 8",
    ],
)
def test_trtexec_images_are_queries_times_the_batch(tmp_path: Path, line: str) -> None:
    file = tmp_path / "log.txt"
    file.write_text(f"{LOG}[11/21/2026-05:00:04] {line}\n")
    made = trtexec.read(file, "0.1.0")
    assert made.config["batch"] == 8
    assert made.throughput_ips == pytest.approx(8 * 344.731)
    assert "config.batch" not in made.reasons


def test_trtexec_remarks_on_the_measurement_are_warnings(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    said = "GPU compute time is unstable, with coefficient of variance = 4.2%."
    lines = (
        f"[W] * {said}\n[W]   If not already in use, locking GPU clock frequency may help.\n[W] [TRT] other"
    )
    file.write_text(LOG + lines)
    assert trtexec.read(file, "0.1.0").warnings == (f"trtexec: {said}",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"count": 3}, {"name": "conv", "timeMs": 1}]', "a layer profile; expected the file of trtexec"),
        ('{"results": 1}', "other JSON; expected the file of trtexec --exportTimes"),
        ('[{"latencyMs": 1}]', "a query without 'h2dMs'"),
        ("hello", "no line such as 'Latency: min = 1.2 ms"),
    ],
)
def test_trtexec_helpful_errors(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(DataError, match=said):
        trtexec.read(tmp_path / "f", "0.1.0")
    with pytest.raises(DataError, match="none: cannot be read"):
        trtexec.read(tmp_path / "none", "0.1.0")


def test_a_saved_measurement_needs_five_per_cent_and_says_so() -> None:
    rounds = [1.0 + 0.001 * (i % 5) for i in range(40)]
    assert compare_saved(rounds, [r / 1.04 for r in rounds], vs="old").word == "no change"
    found = compare_saved(rounds, [r / 1.10 for r in rounds], vs="old")
    assert (found.word, round(found.speedup, 2)) == ("faster", 1.10)
    assert found.why.endswith("not measured together")
    assert compare_saved([r / 1.10 for r in rounds], rounds, vs="old").word == "slower"
    few = compare_saved(rounds[:3], rounds, vs="old")
    assert few.word == "cannot say"
    assert few.why.startswith("3 rounds are too few")
    moody = [7.0 * r for r in rounds[:30]] + [1.5] * 10
    moody[::3] = [4.0] * 14
    told = compare_saved(moody, rounds, vs="old", p50_ms=(7.0, 1.0))
    assert (told.word, told.speedup) == ("cannot say", 7.0)
    assert told.why.startswith("rounds spread over ")
    assert told.ci_low <= told.speedup <= told.ci_high
    with pytest.raises(DataError, match="the saved result holds no rounds"):
        compare_saved([], rounds, vs="old")


def test_a_layer_table_is_a_document_of_the_same_schema() -> None:
    report = BenchReport((), None, {"file": "table.json", "layers": 3}).to_json()
    jsonschema.validate(report, schema.document())
    assert not jsonschema.Draft202012Validator(schema.document()).is_valid([]), "a bare list is none"
