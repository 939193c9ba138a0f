"""One HTML page about runs that stands alone: no script, no network, light and dark, readable on a phone.

What a run does not hold is left out, never guessed. A number that needed labels says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgeprune
from edgeprune.report import facts, numbers, pictures
from edgeprune.report.facts import Facts

if TYPE_CHECKING:
    from markupsafe import Markup

_X = ("step", "stage", "time", "epoch")
_DENSE = (
    ("dense_macs", "macs"),
    ("macs_before", "macs"),
    ("dense_params", "params"),
    ("params_before", "params"),
)


@dataclass(frozen=True)
class State:
    """A row of the summary: a network at one point of its way, as text; "" is not known."""

    name: str
    what: str
    accuracy: str = ""
    macs: str = ""
    params: str = ""
    size: str = ""
    latency: str = ""
    speedup: str = ""
    parity: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing and its caption."""

    caption: str
    svg: Markup


def render(runs: Sequence[Path]) -> str:
    """The page about the run folders `runs`, in their order; DataError when one of them is not there."""
    import jinja2

    from edgeprune.report import plots

    read = [facts.read(path) for path in runs]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeprune.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(fact=numbers.text, label=numbers.label, flat=_flat)
    measured = [row for run in read for row in run.bench]
    states = [state for run in read for state in _states(run, read, measured)]
    machines = _machines(measured)
    return environment.get_template("page.html").render(
        title=", ".join(run.name for run in read),
        version=edgeprune.__version__,
        states=states,
        columns=_columns(states),
        labelled=any(state.accuracy for state in states),
        tradeoffs=_tradeoffs(read, measured, plots),
        runs=[_run(run, plots) for run in read],
        bench=[_bench_row(row, several=len(machines) > 1) for row in measured],
        machines=machines,
    )


def _states(run: Facts, others: Sequence[Facts], measured: Sequence[Mapping[str, Any]]) -> list[State]:
    """The network before the command, unless that is unknown or its own run is here too; and after it."""
    found = run.results
    before = {} if _parent(run) in [other.path.resolve() for other in others] else _before(run)
    states = [State(run.name, f"before {run.command}", **before)] if any(before.values()) else []
    bench: Mapping[str, Any] = next((row for row in reversed(measured) if _is_of(row, run)), {})
    macs = found.get("macs") or run.export.get("macs") or _at(bench, "model", "macs")
    params = run.params or found.get("params") or run.export.get("params")
    states.append(
        State(
            run.name,
            f"after {run.command}" if run.command else "the network",
            accuracy=_percent(found.get("accuracy")),
            macs=_joined(numbers.count(macs)) if macs else "",
            params=_joined(numbers.count(params)) if params else "",
            size=_joined(numbers.size(run.bytes)) if run.bytes else "",
            latency=_latency(bench),
            speedup=numbers.verdict(bench.get("verdict")),
            parity=_parity(run.export.get("parity") or found.get("parity")),
        )
    )
    return states


def _before(run: Facts) -> dict[str, str]:
    """What is known of the network that the command started from."""
    found = run.results
    known = {short: _joined(numbers.count(found[key])) for key, short in _DENSE if found.get(key)}
    if "params" not in known and run.dense_params and run.dense_params != run.params:
        known["params"] = _joined(numbers.count(run.dense_params))
    return {"accuracy": _percent(found.get("accuracy_before")), **known}


def _parent(run: Facts) -> Path | None:
    """The run folder that the command started from, if it did."""
    path = Path(run.model)
    return path.resolve() if run.model and path.is_dir() else None


def _joined(text: str) -> str:
    return text.replace(" ", "\u00a0")  # a number and its unit stay on one line


def _columns(states: Sequence[State]) -> list[tuple[str, str]]:
    """Columns of the summary that hold something."""
    named = {
        "accuracy": "Accuracy*",
        "macs": "MACs",
        "params": "Parameters",
        "size": "Checkpoint",
        "latency": "Latency (p50)",
        "speedup": "Speed-up",
        "parity": "Parity",
    }
    return [(key, text) for key, text in named.items() if any(getattr(s, key) for s in states)]


def _tradeoffs(runs: Sequence[Facts], measured: Sequence[Mapping[str, Any]], plots: Any) -> list[Plot]:
    """Accuracy against MACs, and against latency on each machine: those on which two runs at least have both."""
    costs: dict[str, dict[str, float]] = {"MACs": {}}
    for run in runs:
        if macs := run.results.get("macs") or run.export.get("macs"):
            costs["MACs"][run.name] = float(macs)
        for row in (r for r in measured if _is_of(r, run)):
            p50 = _at(row, "latency_ms", "p50")
            if p50 is not None:
                costs.setdefault(f"latency (ms) on {_machine(row)}", {})[run.name] = float(p50)
    made = []
    for what, known in costs.items():
        dots = [
            plots.Dot(known[run.name], 100 * float(run.results["accuracy"]), run.name, run.command == "prune")
            for run in runs
            if run.name in known and run.results.get("accuracy") is not None
        ]
        if len(dots) > 1:
            caption = f"Accuracy (%) against {what}"
            made.append(Plot(caption, plots.scatter(dots, caption)))
    return made


def _run(run: Facts, plots: Any) -> dict[str, Any]:
    """What the template shows of one run."""
    cuts = [_flat(cut) for cut in run.results.get("cuts") or () if isinstance(cut, Mapping)]
    keys = list(dict.fromkeys(key for cut in cuts for key in cut))
    return {
        "facts": run,
        "curves": _curves(run, plots),
        "widths": _widths(run),
        "cuts": [{key: cut.get(key) for key in keys} for cut in cuts],
        "worst": pictures.worst(run),
    }


def _curves(run: Facts, plots: Any) -> list[Plot]:
    """One small plot for each number that metrics.jsonl follows, stage by stage."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for count, line in enumerate(run.metrics):
        step = line.get("step", count)
        for key, item in _flat(line).items():
            if key not in _X and isinstance(item, int | float) and not isinstance(item, bool):
                series.setdefault((str(line.get("stage", "")), key), []).append((float(step), float(item)))
    chosen = run.results.get("chosen_step")
    made = []
    for (stage, key), points in series.items():
        if len(points) > 1:
            mark = float(chosen) if chosen is not None and stage in ("", run.command) else None
            caption = f"{stage}: {numbers.label(key)}" if stage else numbers.label(key)
            made.append(Plot(caption, plots.curve(points, caption, mark)))
    return made


def _widths(run: Facts) -> dict[str, Any]:
    cut = [
        {"layer": w.layer, "dense": w.dense, "now": w.now, "share": round(100 * w.now / w.dense, 1)}
        for w in run.widths
        if w.now != w.dense
    ]
    return {"cut": cut, "same": len(run.widths) - len(cut)}


def _bench_row(row: Mapping[str, Any], *, several: bool) -> dict[str, str]:
    """A line of the table of latencies; with `several` machines it says on which."""
    config, times = row.get("config") or {}, row.get("latency_ms") or {}
    return {
        "artefact": str(_at(row, "model", "name") or ""),
        **({"device": _machine(row)} if several else {}),
        "runtime": " ".join(str(config.get(k, "")) for k in ("runtime", "precision")).strip(),
        "batch": str(config.get("batch", "")),
        "threads": str(config.get("threads", "")),
        **{key: f"{times[key]:.3g}" if times.get(key) is not None else "" for key in ("p50", "p90", "p99")},
        "images per second": f"{row['throughput_ips']:.4g}" if row.get("throughput_ips") else "",
        "against the baseline": numbers.verdict(row.get("verdict")),
    }


def _machines(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in measured if (name := _machine(row))))


def _machine(row: Mapping[str, Any]) -> str:
    host = row.get("host") or {}
    names = [_at(host, "cpu", "name"), _at(host, "gpu", "name"), host.get("board"), host.get("os")]
    return ", ".join(str(n) for n in names if n)


def _is_of(row: Mapping[str, Any], run: Facts) -> bool:
    """Whether a bench row measured this run's own file: by its name, or by being alone."""
    name = str(_at(row, "model", "name") or "")
    return run.name in Path(name).parts or len(run.bench) == 1


def _latency(row: Mapping[str, Any]) -> str:
    times = row.get("latency_ms") or {}
    return f"{times['p50']:.3g} ms (p90 {times['p90']:.3g})" if times.get("p50") is not None else ""


def _parity(parity: Any) -> str:
    if not isinstance(parity, Mapping) or not parity.get("n"):
        return ""
    error = parity.get("relative")
    said = f"{parity.get('flips', '?')} of {parity['n']} flipped"
    return f"{said}, error {error:.1e}" if isinstance(error, float) else said


def _percent(share: Any) -> str:
    return f"{100 * share:.1f}%" if isinstance(share, int | float) else ""


def _at(data: Mapping[str, Any], *keys: str) -> Any:
    found: Any = data
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in data.items():
        name = f"{prefix} {key}".strip()
        if isinstance(item, Mapping):
            found |= _flat(item, name)
        elif item not in (None, "", []):
            found[name] = item
    return found
