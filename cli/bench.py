"""`edgeprune bench`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeprune.cli import show as page
from edgeprune.report import numbers

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune bench runs/prune-resnet50-1 --baseline runs/adapt-resnet50-1",
    "edgeprune bench slim.onnx --batch 1,8 --threads 2 -o bench.json",
)

# What a narrow terminal does without, first things first.
_SPARE = ("params", "bytes", "runtime", "p99 ms", "macs", "images/s", "batch")


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.bench` returned: a row each, then what to beware of."""
    if facts.get("layers"):
        page.result(facts["layers"], console)
        return
    rows = facts.get("results", ())
    page.table([_row(row) for row in rows], console, spare=_SPARE)
    for said in dict.fromkeys(warning for row in rows for warning in row.get("warnings", ())):
        console.print(f"warning: {said}", style="yellow", markup=False, highlight=False)
    if facts.get("output"):
        page.pairs({"output": facts["output"]}, console)


def _row(row: page.Facts) -> dict[str, Any]:
    model, config, times = row["model"], row["config"], row["latency_ms"]
    quality = row.get("quality") or {}
    return {
        "artefact": model["name"],
        "runtime": f"{config.get('runtime', '')} {config.get('precision', '')}".strip(),
        "batch": config.get("batch"),
        **{f"{key} ms": f"{times[key]:.3g}" for key in ("p50", "p90", "p99") if times.get(key) is not None},
        "images/s": _rate(row["throughput_ips"]),
        "accuracy": quality.get("accuracy"),
        "macs": model.get("macs"),
        "params": model.get("params"),
        "bytes": model.get("bytes"),
        "against the baseline": numbers.verdict(row.get("verdict")),
    }


def _rate(images: float) -> str:
    return f"{images:,.0f}" if images >= 100 else f"{images:.3g}"
