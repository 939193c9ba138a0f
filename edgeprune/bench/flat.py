"""Bench results as flat tables for spreadsheets (CSV) and for text (Markdown); the columns are stable."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from edgeprune.bench import warned
from edgeprune.bench.result import BenchResult

_TIMES = ("p50", "p90", "p95", "p99", "min", "max", "mean", "std", "cov", "n")


def flat(row: BenchResult) -> dict[str, Any]:
    """One result as one level of scalars; what is not known is None."""
    verdict, power, memory = row.verdict, row.power or {}, row.memory or {}
    times = {key if key in ("cov", "n") else f"{key}_ms": getattr(row.latency_ms, key) for key in _TIMES}
    return {
        "artefact": row.model.name,
        "runtime": row.config.get("runtime"),
        "provider": row.config.get("provider"),
        "precision": row.config.get("precision"),
        "device": row.config.get("device"),
        "host": _host(row.host),
        "mode": row.config.get("mode"),
        "batch": row.config.get("batch"),
        "threads": row.config.get("threads"),
        "streams": row.config.get("streams"),
        "input": row.config.get("input"),
        "input_sizes": "; ".join("x".join(map(str, i.get("shape", ()))) for i in row.model.inputs) or None,
        **times,
        **{f"{name}_p50_ms": part.p50 for name, part in (row.parts_ms or {}).items()},
        "gpu_p50_ms": row.gpu_ms.p50 if row.gpu_ms else None,
        "images_per_s": row.throughput_ips,
        "queries_per_s": row.config.get("queries_per_s"),
        "macs": row.model.macs,
        "params": row.model.params,
        "bytes": row.model.bytes,
        "runner_peak_bytes": memory.get("runner_peak_bytes"),
        "process_peak_bytes": memory.get("process_peak_bytes"),
        "mean_w": power.get("mean_w"),
        "gross_mj": power.get("gross_mj"),
        "net_mj": power.get("net_mj"),
        "power_source": power.get("source"),
        "accuracy": (row.quality or {}).get("accuracy"),
        "against": verdict.vs if verdict else None,
        "verdict": verdict.word if verdict else None,
        "speedup": verdict.speedup if verdict else None,
        "ci_low": verdict.ci_low if verdict else None,
        "ci_high": verdict.ci_high if verdict else None,
        "why": verdict.why if verdict else None,
        "forced": "; ".join(verdict.forced) or None if verdict else None,
        "created": row.created,
        "tool_version": row.tool_version,
    }


def _host(host: Mapping[str, Any]) -> Any:
    for key in ("board", "gpu", "cpu"):
        part = host.get(key)
        name = part.get("name") if isinstance(part, Mapping) else part
        if name:
            return name
    return None


def to_csv(rows: Sequence[BenchResult]) -> str:
    """Comma-separated, a header and a line a row; unknown values are empty."""
    table = [flat(row) for row in rows]
    keys = list(dict.fromkeys(key for row in table for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


_COLUMNS = (
    "artefact",
    "runtime",
    "mode",
    "batch",
    "threads",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "gpu_p50_ms",
    "images_per_s",
    "macs",
)


def to_markdown(rows: Sequence[BenchResult]) -> str:
    """A table of the main columns, and below it what was measured where and what to beware of."""
    lines = [f"| {' | '.join((*_COLUMNS, 'against the baseline'))} |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for row in rows:
        values = flat(row)
        cells = [_cell(values[key]) for key in _COLUMNS]
        verdict = f"{row.verdict} ({row.verdict.why})" if row.verdict else ""
        lines.append(f"| {' | '.join((*cells, verdict))} |")
    hosts = dict.fromkeys(str(flat(row)["host"]) for row in rows)
    lines += ["", f"Measured by edgeprune {rows[0].tool_version} on {'; '.join(hosts)}, {rows[0].created}."]
    lines += [f"- {said}" for said in warned.lines([row.to_json() for row in rows])]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|")
