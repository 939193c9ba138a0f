"""What NVIDIA's trtexec measured, as a row of ours: its `--exportTimes` file (JSON) or what it printed (a log).

A times file has every query: startEnqMs, endEnqMs, h2dMs, computeMs, d2hMs, latencyMs. A log has a line for each of
Latency, Enqueue Time, H2D Latency, GPU Compute Time and D2H Latency, with min, max, mean, median and percentiles. Its
defaults changed in TensorRT 11 (no transfers, CUDA graph, spin wait), so whether transfers are inside is recorded.

latency_ms is trtexec's host latency (H2D + GPU + D2H), gpu_ms its GPU compute time. It counts queries; a log says how
many images a query holds by the shapes it prints, a times file does not, and then there is no number of images.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.bench.result import BenchResult, Measured
from edgeprune.bench.statistics import Latency, summary
from edgeprune.errors import DataError

_PARTS = {"h2d": "h2dMs", "d2h": "d2hMs"}
# In the order of trust: what was bound or inferred, then what was asked for, then the batch of networks without shapes.
_BATCHES = (
    r"Input inference shape\s*:\s*[^\s=]+=(\d+)x",
    r"[Ii]nput binding for \S+ with dimensions (\d+)x",
    r"--shapes=[^\s:]+:(\d+)x",
    r"\] Batch:\s*(\d+)",
)
# Its remarks on the measurement; other [W] lines are about the build.
_REMARK = re.compile(
    r"\[W\]\s*\*?\s*((?:GPU compute time|Throughput may be|Host latency|Clock)[^\n]*)", re.IGNORECASE
)
_LINES = {"enqueue": "Enqueue Time", "h2d": "H2D Latency", "d2h": "D2H Latency"}


def read(path: Path, tool_version: str) -> BenchResult:
    """The row of one file; DataError says what was found instead."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror}); expected what trtexec wrote") from err
    try:
        found = json.loads(text)
    except ValueError:
        return _of_log(path, text, tool_version)
    return _of_times(path, found, tool_version)


def _of_times(path: Path, found: Any, version: str) -> BenchResult:
    rows = (
        [r for r in found if isinstance(r, Mapping) and "latencyMs" in r] if isinstance(found, list) else []
    )
    if not rows:
        what = (
            "a layer profile" if isinstance(found, list) and found and "count" in found[0] else "other JSON"
        )
        raise DataError(f"{path}: {what}; expected the file of trtexec --exportTimes, with latencyMs")

    def column(key: str) -> list[float]:
        return [float(r[key]) * 1e-3 for r in rows]

    try:
        parts = {name: summary(column(key)) for name, key in _PARTS.items()}
        parts["enqueue"] = summary([(float(r["endEnqMs"]) - float(r["startEnqMs"])) * 1e-3 for r in rows])
        latency, gpu = summary(column("latencyMs")), summary(column("computeMs"))
        span_ms = max(float(r["endD2hMs"]) for r in rows) - min(float(r["startH2dMs"]) for r in rows)
    except (KeyError, TypeError, ValueError) as err:
        raise DataError(f"{path}: a query without {err}; expected the file of trtexec --exportTimes") from err
    transfers = parts["h2d"].max + parts["d2h"].max > 0
    return _row(path, {"transfers": transfers}, latency, gpu, parts, len(rows) / span_ms * 1e3, version)


def _of_log(path: Path, text: str, version: str) -> BenchResult:
    queries = re.search(r"has (\d+) queries", text)
    n = int(queries[1]) if queries else None
    latency = _line(text, "Latency", n)
    if latency is None:
        raise DataError(
            f"{path}: no line such as 'Latency: min = 1.2 ms, max = ...'; expected the output of trtexec, "
            "or the file of --exportTimes"
        )
    made = {name: _line(text, words, n) for name, words in _LINES.items()}
    parts = {name: line for name, line in made.items() if line is not None}
    rate = re.search(r"Throughput:\s*([\d.]+)\s*qps", text)
    device = re.search(r"Selected Device:\s*(.+)", text)
    engine = re.search(r"TensorRT version:\s*([\d.]+)", text)
    model = re.search(r"\] Model:\s*(\S+\.onnx)|Loaded engine from\s*(\S+)|--(?:onnx|loadEngine)=(\S+)", text)
    precision = re.search(r"\] Precision:\s*(.+)", text)
    batch = next((int(m[1]) for m in (re.search(p, text) for p in _BATCHES) if m), None)
    streams = re.search(r"\] (?:Inference )?Streams:\s*(\d+)", text)
    facts = {
        "batch": batch,
        "streams": int(streams[1]) if streams else None,
        "warnings": tuple(dict.fromkeys(f"trtexec: {said.strip()}" for said in _REMARK.findall(text))),
        "transfers": any(parts[k].max > 0 for k in ("h2d", "d2h") if k in parts),
        "tensorrt": engine[1] if engine else None,
        "gpu": device[1].strip() if device else None,
        "model": next((g for g in model.groups() if g), None) if model else None,
        "precision": precision[1].strip() if precision else None,
    }
    qps = float(rate[1]) if rate else 1e3 / latency.mean
    return _row(path, facts, latency, _line(text, "GPU Compute Time", n), parts, qps, version)


def _line(text: str, words: str, n: int | None) -> Latency | None:
    found = re.search(rf"\] {words}: (min = .*)", text)
    if found is None:
        return None
    numbers = dict(re.findall(r"([\w()%]+) = ([\d.eE+-]+) ms", found[1]))
    get = {k: float(v) for k, v in numbers.items()}
    if not {"min", "max", "mean", "median"} <= set(get):
        return None
    percent = {p: get.get(f"percentile({p}%)") for p in (90, 95, 99)}
    return Latency(
        n,
        get["median"],
        percent[90],
        percent[95],
        percent[99],
        None,
        get["min"],
        get["max"],
        get["mean"],
        None,
        None,
    )


def _row(
    path: Path,
    facts: Mapping[str, Any],
    latency: Latency,
    gpu: Latency | None,
    parts: Mapping[str, Latency],
    queries_per_s: float,
    version: str,
) -> BenchResult:
    batch = facts.get("batch")
    config = {
        "runtime": "tensorrt",
        "precision": facts.get("precision"),
        "batch": batch,
        "queries_per_s": queries_per_s,
        "mode": "steady",
        "threads": None,
        "streams": facts.get("streams"),
        "transfers": facts["transfers"],
        "device": "cuda",
        "input": "random",
        "imported": path.name,
        "tensorrt": facts.get("tensorrt"),
    }
    return BenchResult(
        model=Measured(Path(facts.get("model") or path.name).name),
        config=config,
        host={"gpu": {"name": facts["gpu"]} if facts.get("gpu") else None},
        latency_ms=latency,
        throughput_ips=queries_per_s * batch if batch is not None else None,
        tool_version=version,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        gpu_ms=gpu,
        parts_ms=dict(parts),
        warnings=facts.get("warnings", ()),
        reasons=_unmeasured(facts),
    )


def _unmeasured(facts: Mapping[str, Any]) -> dict[str, str]:
    """Field -> why a log of trtexec leaves it empty."""
    reasons = {
        "power": "trtexec does not measure it",
        "layers": "in trtexec's --exportProfile file, not in this one",
        "clocks": "trtexec does not record them",
    }
    if facts.get("batch") is None:
        reasons["config.batch"] = "trtexec does not say it here"
        reasons["throughput_ips"] = "trtexec counts queries, and nothing says how many images one holds"
    if facts.get("gpu") is None:
        reasons["host.gpu"] = "not in this file; import the log to have it"
    return reasons
