"""One HTML page about runs that stands alone: no script, no network, light and dark, readable on a phone.

What a run does not hold is left out, never guessed. A number that needed labels says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgeprune
from edgeprune.report import facts, latencies, numbers, pictures
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


_SHOWN = ("run", "widths", "cuts", "next")  # results that have their own place on the page


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
    once = {facts.row_identity(row): row for run in read for row in run.bench}
    measured = latencies.newest(once.values())
    own = {run.path: _own(run, measured) for run in read}
    wanted = latencies.headline(list(own.values()))
    states = [state for run in read for state in _states(run, read, own[run.path], wanted)]
    machines = list(dict.fromkeys(name for row in measured if (name := latencies.machine(row))))
    return environment.get_template("page.html").render(
        title=", ".join(run.name for run in read),
        version=edgeprune.__version__,
        states=[_cells(state, _columns(states)) for state in states],
        columns=_columns(states),
        labelled=any(state.accuracy for state in states),
        wanted=wanted if any(state.latency for state in states) else None,
        tradeoffs=_tradeoffs(read, own, machines, plots),
        runs=[_run(run, plots) for run in read],
        bench=latencies.table(measured),
        older=len(once) - len(measured),
        findings=latencies.findings(measured),
        machines=machines,
    )


def _own(run: Facts, measured: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that measured this run's own files: by their names, or by being alone."""
    return [
        row
        for row in measured
        if run.name in Path(latencies.way(row).artefact).parts[:-1]
        or (len(run.bench) == 1 and row in run.bench)
    ]


def _cells(state: State, columns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"name": state.name, "what": state.what, **{key: getattr(state, key) for key, _ in columns}}


def _states(
    run: Facts,
    others: Sequence[Facts],
    measured: Sequence[Mapping[str, Any]],
    wanted: latencies.Way | None,
) -> list[State]:
    """The network before the command, unless that is unknown or its own run is here too; and after it."""
    found = run.results
    before = {} if _parent(run) in [other.path.resolve() for other in others] else _before(run)
    states = [State(run.name, f"before {run.command}", **before)] if any(before.values()) else []
    bench = latencies.best(measured, wanted)
    macs = found.get("macs") or run.export.get("macs") or latencies.at(bench, "model", "macs")
    params = run.params or found.get("params") or run.export.get("params")
    states.append(
        State(
            run.name,
            f"after {run.command}" if run.command else "the network",
            accuracy=_percent(found.get("accuracy")),
            macs=_joined(numbers.count(macs)) if macs else "",
            params=_joined(numbers.count(params)) if params else "",
            size=_joined(numbers.size(run.bytes)) if run.bytes else "",
            latency=_latency(bench, wanted),
            speedup=latencies.verdict(bench.get("verdict")),
            parity=_parities(run),
        )
    )
    return states


def _before(run: Facts) -> dict[str, str]:
    """What is known of the network that the command started from; where nothing was cut, its size is what it is now."""
    found = run.results
    known = {short: _joined(numbers.count(found[key])) for key, short in _DENSE if found.get(key)}
    uncut = run.dense_params is not None and run.dense_params == run.params
    if "params" not in known and run.dense_params and not uncut:
        known["params"] = _joined(numbers.count(run.dense_params))
    before = {"accuracy": _percent(found.get("accuracy_before")), **known}
    if uncut and any(before.values()):
        now = {"macs": found.get("macs") or run.export.get("macs"), "params": run.params}
        before = {key: _joined(numbers.count(item)) for key, item in now.items() if item} | before
    return before


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


def _tradeoffs(
    runs: Sequence[Facts],
    own: Mapping[Path, Sequence[Mapping[str, Any]]],
    machines: Sequence[str],
    plots: Any,
) -> list[Plot]:
    """Accuracy against MACs, and against latency on each machine: those on which two runs at least have both."""
    costs: dict[str, dict[str, float]] = {"MACs": {}}
    for run in runs:
        if macs := run.results.get("macs") or run.export.get("macs"):
            costs["MACs"][run.name] = float(macs)
    for machine in machines:
        here = {run.name: [r for r in own[run.path] if latencies.machine(r) == machine] for run in runs}
        wanted = latencies.headline(list(here.values()))
        if wanted is None:
            continue
        for name, rows in here.items():
            row = latencies.best(rows, wanted)
            if row and latencies.way(row).of_any == wanted and row["latency_ms"].get("p50") is not None:
                what = f"latency (ms) on {machine}: {wanted.sentence()}"
                costs.setdefault(what, {})[name] = float(row["latency_ms"]["p50"])
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
        "cuts": [{key: numbers.text(cut.get(key), key) for key in keys} for cut in cuts],
        "cut_keys": keys,
        "exports": [_export_row(e) for e in run.exports],
        "worst": [_worst(run, e) for e in run.exports if not e.meta.get("ends")],
        "results": {k: v for k, v in run.results.items() if k not in _SHOWN},
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
            caption = _caption(key, stage if stage != run.command else "")
            made.append(Plot(caption, plots.curve(points, caption, mark)))
    return made


def _widths(run: Facts) -> dict[str, Any]:
    cut = [
        {"layer": w.layer, "dense": w.dense, "now": w.now, "share": round(100 * w.now / w.dense, 1)}
        for w in run.widths
        if w.now != w.dense
    ]
    return {"cut": cut, "same": len(run.widths) - len(cut)}


def _caption(key: str, stage: str) -> str:
    """ "Validator information, stage source" of a label-free validator, else the name of what was followed."""
    family, _, rest = key.partition(" ")
    name = f"Validator: {rest.replace('_', ' ')}" if family == "validators" and rest else numbers.label(key)
    return f"{name}, stage {stage}" if stage else name


def _export_row(e: facts.Exported) -> dict[str, str]:
    """A line of the table of exported files. A file with ends is compared with the plain one it was made from."""
    ends = e.meta.get("ends")
    parity = (ends.get("parity") if isinstance(ends, Mapping) else e.meta.get("parity")) or {}
    row = {"file": e.file, "precision": e.precision, "size": numbers.size(e.bytes) if e.bytes else ""}
    for key in ("flips", "ties", "relative", "cosine", "n"):
        row[key] = numbers.text(parity[key], key) if parity.get(key) is not None else ""
    return row


def _worst(run: Facts, e: facts.Exported) -> dict[str, Any]:
    rows = pictures.worst(run, e.meta)
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "picture"))
    shown = [{"picture": row["picture"], **{k: numbers.text(row.get(k), k) for k in keys}} for row in rows]
    return {"file": e.file, "keys": keys, "rows": shown}


def _latency(row: Mapping[str, Any], wanted: latencies.Way | None) -> str:
    """The median, and how it was measured where that is not how the others were."""
    said = latencies.p50(row) if row else ""
    if not said:
        return ""
    here = latencies.way(row).of_any
    return said if here == wanted else f"{said}: {here.artefact}, {here.sentence()}, on {here.device}"


def _parities(run: Facts) -> str:
    """Parity of the float32 file in full, of each lower precision how many answers changed."""
    said = [_parity(run.export.get("parity") or run.results.get("parity"))]
    for e in run.exports:
        found = e.meta.get("parity")
        if e.precision != "fp32" and not e.meta.get("ends") and isinstance(found, Mapping) and found.get("n"):
            said.append(f"{e.precision}: {found.get('flips', '?')} flipped")
    return "; ".join(part for part in said if part)


def _parity(parity: Any) -> str:
    if not isinstance(parity, Mapping) or not parity.get("n"):
        return ""
    error = parity.get("relative")
    said = f"{parity.get('flips', '?')} of {parity['n']} flipped"
    return f"{said}, error {error:.1e}" if isinstance(error, float) else said


def _percent(share: Any) -> str:
    return f"{100 * share:.1f}%" if isinstance(share, int | float) else ""


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in data.items():
        name = f"{prefix} {key}".strip()
        if isinstance(item, Mapping):
            found |= _flat(item, name)
        elif item not in (None, "", []):
            found[name] = item
    return found
