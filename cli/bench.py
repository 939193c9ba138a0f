"""`edgeprune bench`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeprune.cli import show as page
from edgeprune.report import numbers

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune bench runs/prune-resnet50-1 --baseline runs/adapt-resnet50-1",
    "edgeprune bench slim.onnx --batch 1,8 --threads 1,2 -o bench.json --csv bench.csv",
    "edgeprune bench slim.onnx --baseline dense.onnx --diagnose",
    "edgeprune bench slim.onnx --mode paced --fps 30",
    "edgeprune bench --import-trtexec times.json",
)

# What a narrow terminal does without, first things first; before these, what is the same in every row.
_SPARE = ("params", "bytes", "memory bytes", "runtime", "p99 ms", "macs", "images/s", "threads", "batch")
_LAYERS = 12


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.bench` returned: a row each, layers, causes, then what to beware of."""
    if facts.get("layers"):
        page.result(facts["layers"], console)
        return
    rows = facts.get("results", ())
    shown = [_row(row) for row in rows]
    settings = [key for key in ("batch", "threads") if len({row[key] for row in shown}) > 1]
    page.table(shown, console, spare=[key for key in _SPARE if key not in settings])
    diagnosed = any(row.get("diagnosis") for row in rows)
    for row in rows:
        if diagnosed:
            _causes(row, console)
        else:
            _operators(row, console)
    said = dict.fromkeys(w for row in rows for w in row.get("warnings", ()))
    for warning in (*said, *facts.get("warnings", ())):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    if facts.get("output"):
        page.pairs({"output": facts["output"]}, console)


def _title(row: page.Facts) -> str:
    config = row["config"]
    return f"{row['model']['name']}, batch {config.get('batch')}, threads {config.get('threads')}"


def _operators(row: page.Facts, console: Console) -> None:
    """A row's slowest operators."""
    layers = row.get("layers") or ()
    if not layers:
        return
    slowest = sorted(layers, key=lambda layer: -layer["ms_median"])[:_LAYERS]
    rows = [
        {
            "operator": layer["name"],
            "type": layer["type"],
            "median ms": f"{layer['ms_median']:.4f}",
            "share": f"{layer['pct']:.0f}%",
            "channels": f"{layer['channels_in'] or '?'} -> {layer['channels_out'] or '?'}",
        }
        for layer in slowest
    ]
    more = f": the slowest {_LAYERS} of {len(layers)}" if len(layers) > _LAYERS else ""
    page.table(rows, console, title=_title(row) + more, spare=("channels", "type"))


def _causes(row: page.Facts, console: Console) -> None:
    """What holds a row back, a sentence a cause."""
    if row.get("diagnosis"):
        console.print(f"\n{_title(row)}: what holds it back", style="bold", markup=False, highlight=False)
    for finding in row.get("diagnosis") or ():
        console.print(f"- {finding['text']}", markup=False, highlight=False)


def _row(row: page.Facts) -> dict[str, Any]:
    model, config, times = row["model"], row["config"], row["latency_ms"]
    quality, power, parts = row.get("quality") or {}, row.get("power") or {}, row.get("parts_ms") or {}
    return {
        "artefact": model["name"],
        "runtime": f"{config.get('runtime') or ''} {config.get('precision') or ''}".strip(),
        "mode": _mode(config),
        "batch": config.get("batch"),
        "threads": config.get("threads"),
        **{f"{key} ms": f"{times[key]:.3g}" for key in ("p50", "p90", "p99") if times.get(key) is not None},
        **{f"{name} ms": f"{part['p50']:.3g}" for name, part in parts.items()},
        "images/s": _rate(row["throughput_ips"]),
        "mJ/image": f"{power['gross_mj']:.3g} ({power['net_mj']:.3g} net)" if power else None,
        "accuracy": quality.get("accuracy"),
        "macs": model.get("macs"),
        "params": model.get("params"),
        "bytes": model.get("bytes"),
        "memory bytes": (row.get("memory") or {}).get("runner_peak_bytes"),
        "against the baseline": numbers.verdict(row.get("verdict")),
    }


def _mode(config: page.Facts) -> str | None:
    """The mode where it is not the usual one."""
    told = {
        "paced": f"paced {config.get('fps') or 0:g} fps",
        "throughput": f"{config.get('streams')} streams",
    }
    mode = str(config.get("mode"))
    return None if mode == "steady" else told.get(mode, mode)


def _rate(images: float) -> str:
    return f"{images:,.0f}" if images >= 100 else f"{images:.3g}"
