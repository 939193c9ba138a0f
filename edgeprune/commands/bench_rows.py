"""From samples to the rows of `edgeprune bench`: summaries, warnings, verdicts, and what holds a network back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import __version__, count
from edgeprune.bench import diagnose, power
from edgeprune.bench.compare import compare_saved
from edgeprune.bench.measure import Samples
from edgeprune.bench.result import BenchResult, Measured, require_comparable
from edgeprune.bench.statistics import FLOATING_COV, summary
from edgeprune.commands.bench_open import Opened, Setting
from edgeprune.device_options import BenchOptions
from edgeprune.errors import DataError, EdgePruneError, UsageError

LAUNCH_BOUND = 0.8  # trtexec's threshold: enqueueing against computing


def row(options: BenchOptions, opened: Opened, samples: Samples, extra: Mapping[str, Any]) -> BenchResult:
    """One row; `extra` fills the fields that every row of a measurement shares (host, clocks)."""
    latency = summary(samples.latency_s)
    found, batch = opened.found, int(opened.config["batch"])
    counted = count.count(found.path) if found.kind == "onnx" else None
    parts = {name: summary(part) for name, part in samples.parts_s.items()}
    gpu = parts.pop("gpu", None)
    layers, why_no_layers = _layers(options, opened)
    energy, why_no_power = _power(options, opened)
    reasons = {
        **opened.reasons,
        **({"power": why_no_power} if energy is None else {}),
        **({"layers": why_no_layers} if layers is None else {}),
        **({} if gpu else {"gpu_ms": "the wall clock was read, around the whole call"}),
        **(
            {}
            if parts
            else {"parts_ms": f"the {opened.runner.name} runtime tells no parts in mode {options.mode}"}
        ),
    }
    compared = samples.for_comparing()
    rate = 1 / summary(compared.latency_s).p50 * 1e3 if samples.rate is not None else 1e3 / latency.p50
    return BenchResult(
        model=Measured(
            name=opened.name,
            sha256=found.sha256,
            parents=found.parents,
            bytes=found.path.stat().st_size,
            macs=counted.macs if counted else None,
            params=counted.params if counted else None,
        ),
        config={**opened.config, **samples.facts},
        latency_ms=latency,
        throughput_ips=batch * rate,
        tool_version=__version__,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        memory=opened.memory,
        power=energy,
        layers=layers,
        gpu_ms=gpu,
        parts_ms=parts or None,
        rounds_ms=tuple(round(float(s) * 1e3, 6) for s in compared.per_round()),
        warnings=tuple(_warnings(options, opened, samples, latency.cov or 0.0)),
        reasons=reasons,
        **extra,
    )


def _warnings(options: BenchOptions, opened: Opened, samples: Samples, cov: float) -> list[str]:
    found, name = [], opened.name
    if not samples.settled:
        found.append(f"{name}: the warm-up did not settle within 2%: the machine is busy or its clocks move")
    if cov > FLOATING_COV and options.mode == "steady":
        found.append(f"{name}: times vary by {100 * cov:.0f}% (CoV): trust the interval, not single runs")
    missed = samples.facts.get("missed_frames", 0)
    if missed:
        found.append(
            f"{name} missed {missed} frames of {missed + len(samples.latency_s)} at {samples.facts['fps']:g} fps"
        )
    queued = samples.parts_s.get("enqueue")
    if queued is not None and "gpu" in samples.parts_s:
        share = float(np.median(queued) / max(np.median(samples.parts_s["gpu"]), 1e-9))
        if share > LAUNCH_BOUND:
            found.append(
                f"{name}: launching takes {share:.0%} of the GPU's time: launch-bound; CUDA graphs help"
            )
    return found


def _layers(options: BenchOptions, opened: Opened) -> tuple[tuple[Mapping[str, Any], ...] | None, str]:
    if not (options.per_layer or options.diagnose):
        return None, "not asked for: --per-layer"
    told = getattr(opened.runner, "layer_times", None)
    if told is None:
        return None, f"the runtime {opened.runner.name} does not tell its layers"
    try:
        return tuple(told(opened.feeds)), ""
    except EdgePruneError as err:
        return None, str(err)


def _power(options: BenchOptions, opened: Opened) -> tuple[Mapping[str, Any] | None, str]:
    if options.power is None:
        return None, "not asked for: --power 10"
    sensor, why = power.find(device=str(opened.config["device"]))
    if sensor is None:
        return None, why
    try:
        found = power.energy(
            sensor,
            lambda: opened.runner.infer(opened.feeds),
            batch=int(opened.config["batch"]),
            load_s=options.power,
            idle_s=min(5.0, options.power / 2),
            rest_s=min(2.0, options.power / 2),
        )
    except (OSError, ValueError) as err:
        return None, f"{sensor.source} failed under way: {err}"
    return {**found.to_json(), "rails_w": sensor.rails()}, ""


def saved(path: Path) -> list[BenchResult]:
    """The rows of a JSON file that bench wrote with -o, or printed with --json; DataError for another file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        why = "no such file" if isinstance(err, FileNotFoundError) else f"cannot be read ({err.strerror})"
        raise DataError(f"--baseline {path}: {why}; expected what bench -o wrote") from err
    except ValueError as err:
        raise DataError(f"--baseline {path}: is not JSON ({err}); expected what bench -o wrote") from err
    rows = found.get("results") if isinstance(found, Mapping) else found
    if not isinstance(rows, list) or not rows or not all(isinstance(r, Mapping) for r in rows):
        raise DataError(f"--baseline {path}: holds no rows; expected what bench -o wrote")
    return [BenchResult.from_json(r) for r in rows]


def against(options: BenchOptions, before: Sequence[BenchResult], row: BenchResult) -> BenchResult:
    """A row with its verdict against the first saved row of the same batch and threads, else the first saved row."""
    same = [b for b in before if all(b.config.get(k) == row.config.get(k) for k in ("batch", "threads"))]
    one = (same or list(before))[0]
    require_comparable(one, row, force=options.force_compare)
    verdict = compare_saved(
        one.rounds_ms,
        row.rounds_ms,
        vs=f"{one.model.name} of {one.created}",
        p50_ms=None if options.mode == "throughput" else (one.latency_ms.p50, row.latency_ms.p50),
        seed=options.seed,
    )
    return replace(row, verdict=verdict)


Key = tuple[str, Setting]


def with_diagnosis(
    rows: Mapping[Key, BenchResult], files: Mapping[str, Path], baseline: str
) -> dict[Key, BenchResult]:
    """Rows with a diagnosis against `baseline`, whose rows stay; UsageError where no runtime told its layers."""

    def side(key: Key) -> diagnose.Side:
        found = rows[key]
        if found.layers is None or found.model.macs is None:
            why = found.reasons.get("layers", "its MACs cannot be counted")
            raise UsageError(
                f"--diagnose {found.model.name}: {why}; it works on ONNX files with --runtime ort"
            )
        batch = key[1].batch
        times = {
            s.threads: r.latency_ms.p50 for (w, s), r in rows.items() if w == key[0] and s.batch == batch
        }
        counted = count.count(files[key[0]]).layers
        return diagnose.Side(found.model.name, found.latency_ms.p50, found.layers, counted, times, batch)

    made = dict(rows)
    for word, setting in rows:
        if word != baseline:
            found = diagnose.diagnose(side((baseline, setting)), side((word, setting)))
            made[word, setting] = replace(rows[word, setting], diagnosis=tuple(f.to_json() for f in found))
    return made
