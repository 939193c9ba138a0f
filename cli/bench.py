"""`edgeprune bench`: its examples, and how its result is shown."""

from __future__ import annotations

from collections.abc import Sequence
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
_SPARE = (
    *("params", "bytes", "memory bytes", "runtime", "p99 ms", "macs", "images/s", "threads", "batch"),
    *("D2H ms", "H2D ms", "enqueue ms", "queries/s", "first ms", "load ms", "p90 ms", "mode"),
)
_LAYERS = 12
_PARTS = {"h2d": "H2D", "d2h": "D2H"}


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.bench` returned: a row each, layers, causes, then what to beware of."""
    from edgeprune.bench import warned

    if facts.get("layers"):
        page.result(facts["layers"], console)
        return
    rows = facts.get("results", ())
    if rows:
        _table(rows, console)
    diagnosed = any(row.get("diagnosis") for row in rows)
    for row in rows:
        if diagnosed:
            _causes(row, console)
        else:
            _operators(row, console)
    for warning in warned.lines(rows):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    if facts.get("output"):
        page.pairs({"output": facts["output"]}, console)


def _table(rows: Sequence[page.Facts], console: Console) -> None:
    """A row each, and below it why a verdict is none, and what the columns of trtexec are."""
    from edgeprune.bench import warned

    names = warned.short([row["model"]["name"] for row in rows])
    shown = [{**_row(row), "artefact": name} for name, row in zip(names, rows, strict=True)]
    settings = [key for key in ("batch", "threads") if len({row[key] for row in shown}) > 1]
    settings += ["images/s"] if any(row["config"].get("mode") == "throughput" for row in rows) else []
    page.table(shown, console, spare=[key for key in _SPARE if key not in settings])
    for note in _notes(rows):
        console.print(note, markup=False, highlight=False)


def _notes(rows: Sequence[page.Facts]) -> list[str]:
    """Sentences under the table."""
    from edgeprune.bench import warned

    found = []
    for title, row in zip(warned.titles(rows), rows, strict=True):
        verdict = row.get("verdict") or {}
        unsure = verdict.get("word") in ("no change", "cannot say")
        if verdict and (unsure or "not measured together" in verdict.get("why", "")):
            found.append(f"{title}: {verdict['word']}: {verdict['why']}")
    if any(row.get("verdict") and row["config"].get("mode") == "throughput" for row in rows):
        found.append("Under --mode throughput the verdict compares images a second.")
    if any(row["config"].get("imported") for row in rows):
        found.append(
            "Of trtexec: p50, p90 and p99 are its host latency (H2D + GPU + D2H); GPU p50 is GPU compute time."
        )
    return found


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
        "gpu p50 ms": f"{row['gpu_ms']['p50']:.3g}" if row.get("gpu_ms") else None,
        **{f"{_PARTS.get(name, name)} ms": f"{part['p50']:.3g}" for name, part in parts.items()},
        "images/s": _rate(row.get("throughput_ips")),
        "queries/s": None if row.get("throughput_ips") else _rate(config.get("queries_per_s")),
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
        "throughput": f"{config.get('streams')} stream{'s' if config.get('streams') != 1 else ''}",
    }
    mode = str(config.get("mode"))
    return None if mode == "steady" else told.get(mode, mode)


def _rate(images: float | None) -> str | None:
    if images is None:
        return None
    return f"{images:,.0f}" if images >= 100 else f"{images:.3g}"
