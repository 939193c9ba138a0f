"""`edgeprune bench`: its examples, and how its result is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeprune.cli import show as page
from edgeprune.report import numbers

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXAMPLES = (
    "edgeprune bench dense.onnx slim.onnx --baseline dense.onnx",
    "edgeprune bench slim.onnx --batch 1,8 --threads 2 -o bench.json",
)


def show(facts: page.Facts, console: Console) -> None:
    """Print one row for each artefact and batch: p50 first, and the verdict with its interval."""
    results = facts["results"]
    host, config = results[0]["host"], results[0]["config"]
    cpu = host.get("cpu") or {}
    where = [cpu.get("name") or host.get("arch"), host.get("os"), f"{config['threads']} threads"]
    console.print(" | ".join(str(w) for w in where if w), style="dim", highlight=False)
    console.print(_table(results, console.width))
    for warning in dict.fromkeys(w for r in results for w in r["warnings"]):
        console.print(f"note: {warning}", style="dim", highlight=False)


def _table(results: Sequence[page.Facts], width: int) -> Table:
    """A narrow terminal loses the columns that matter least, never the digits of the others."""
    from rich import box
    from rich.table import Table

    columns = ["model", "batch", "p50 ms", "p90 ms", "p99 ms", "img/s", "MACs", "file", "accuracy", "verdict"]
    if width < 110:
        columns = [c for c in columns if c not in ("img/s", "file", "p90 ms")]
    rows = [_row(r) for r in results]
    columns = [c for c in columns if any(row[c] for row in rows)]
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        text = name in ("model", "verdict")
        drawn.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        drawn.add_row(*(row[c] for c in columns))
    return drawn


def _row(result: page.Facts) -> dict[str, str]:
    latency, model, config = result["latency_ms"], result["model"], result["config"]
    verdict, quality = result["verdict"], result["quality"]
    p99 = latency["p99"]
    return {
        "model": model["name"],
        "batch": str(config["batch"]),
        "p50 ms": f"{latency['p50']:.3g}",
        "p90 ms": f"{latency['p90']:.3g}",
        "p99 ms": f"{p99:.3g}" if p99 is not None else "-",
        "img/s": f"{result['throughput_ips']:.1f}",
        "MACs": numbers.count(model["macs"]) if model["macs"] else "",
        "file": numbers.size(model["bytes"]) if model["bytes"] else "",
        "accuracy": f"{100 * quality['accuracy']:.1f}%" if quality else "",
        "verdict": _verdict(verdict) if verdict else "",
    }


def _verdict(verdict: page.Facts) -> str:
    return f"{verdict['word']} {verdict['speedup']:.2f}x [{verdict['ci_low']:.2f}, {verdict['ci_high']:.2f}]"
