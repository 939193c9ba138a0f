"""From samples to the rows of `edgeprune bench`: summaries, warnings, verdicts, and what holds a network back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import __version__, count
from edgeprune.bench import diagnose, power
from edgeprune.bench.compare import STEADY
from edgeprune.bench.measure import Samples
from edgeprune.bench.result import BenchResult, Measured
from edgeprune.bench.statistics import Latency, spread, summary
from edgeprune.commands.bench_open import Opened, Setting
from edgeprune.device_options import BenchOptions
from edgeprune.errors import EdgePruneError, UsageError

SHARED = 0.05  # of the time; a machine at rest shows below 0.01
LAUNCH_BOUND = 0.8  # trtexec's threshold: enqueueing against computing


def row(options: BenchOptions, opened: Opened, samples: Samples, extra: Mapping[str, Any]) -> BenchResult:
    """One row; `extra` fills the fields that every row of a measurement shares (host, clocks)."""
    latency = summary(samples.latency_s)
    found, batch = opened.found, int(opened.config["batch"])
    counted, why_not_counted = _count(opened)
    parts = {name: summary(part) for name, part in samples.parts_s.items()}
    gpu = parts.pop("gpu", None)
    layers, why_no_layers = _layers(options, opened)
    energy, why_no_power = _power(options, opened)
    rate = _rate(options, samples)
    lacking = {
        **({"model.macs": why_not_counted, "model.params": why_not_counted} if counted is None else {}),
        **({"power": why_no_power} if energy is None else {}),
        **({"layers": why_no_layers} if layers is None else {}),
    }
    reasons = {**opened.reasons, **lacking, **_unmeasured(options, opened, rate, gpu, parts)}
    return BenchResult(
        model=Measured(
            name=opened.name,
            sha256=found.sha256,
            parents=found.parents,
            bytes=found.path.stat().st_size,
            macs=counted.macs if counted else None,
            params=counted.params if counted else None,
            inputs=opened.inputs,
        ),
        config={**opened.config, **samples.facts},
        latency_ms=latency,
        throughput_ips=batch * rate if rate else None,
        tool_version=__version__,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        memory=opened.memory,
        power=energy,
        layers=layers,
        gpu_ms=gpu,
        parts_ms=parts or None,
        rounds_ms=tuple(round(float(s) * 1e3, 6) for s in samples.for_comparing().per_round()),
        warnings=tuple(_warnings(options, opened, samples, lacking)),
        reasons=reasons,
        **extra,
    )


def _unmeasured(
    options: BenchOptions,
    opened: Opened,
    rate: float | None,
    gpu: Latency | None,
    parts: Mapping[str, Latency],
) -> dict[str, str]:
    """Field -> why this way of measuring leaves it empty."""
    found = {} if rate else {"throughput_ips": "a start happens once: it has no rate"}
    if not gpu:
        found["gpu_ms"] = "the wall clock was read, around the whole call"
    if not parts:
        found["parts_ms"] = f"the {opened.runner.name} runtime tells no parts in mode {options.mode}"
    return found


def _count(opened: Opened) -> tuple[count.Count | None, str]:
    """MACs and parameters of an ONNX file, None and why where they cannot be told: what was timed stays true."""
    if opened.found.kind != "onnx":
        return None, "counted in ONNX files alone"
    try:
        return count.count(opened.found.path), ""
    except EdgePruneError as err:
        return None, str(err)


def _rate(options: BenchOptions, samples: Samples) -> float | None:
    """Calls a second: at full load those of all streams, behind a camera those that were in time, else 1 / p50."""
    if options.mode == "cold":
        return None
    if options.mode == "paced":
        done = len(samples.latency_s)
        return float(samples.facts["fps"]) * done / (done + int(samples.facts["missed_frames"]))
    return 1e3 / summary(samples.for_comparing().latency_s).p50


def _warnings(
    options: BenchOptions, opened: Opened, samples: Samples, lacking: Mapping[str, str]
) -> list[str]:
    """Sentences about this row; the table says which row it is."""
    found = []
    alone = str(opened.config["device"]).startswith("cpu") and opened.config["threads"] == 1
    if alone and samples.waited is not None and samples.waited > SHARED:
        found.append(
            f"other work had the processor for {samples.waited:.0%} of the time: the ratio between two "
            "networks can be wrong, too; measure again on a quiet machine"
        )
    if not samples.settled:
        found.append("the warm-up did not settle within 2%: the machine is busy or its clocks move")
    if options.mode != "cold" and spread(samples.for_comparing().per_round()) > STEADY:
        found.append(
            f"the median moved by more than {STEADY:.0%} from round to round: trust the interval, not the p50"
        )
    if options.power is not None and "power" in lacking:
        found.append(f"--power {options.power:g} measured nothing: {lacking['power']}")
    if options.per_layer and "layers" in lacking:
        found.append(f"--per-layer has nothing to show: {lacking['layers']}")
    missed = samples.facts.get("missed_frames", 0)
    if missed:
        found.append(
            f"missed {missed} frames of {missed + len(samples.latency_s)} at {samples.facts['fps']:g} fps"
        )
    queued = samples.parts_s.get("enqueue")
    if queued is not None and "gpu" in samples.parts_s:
        share = float(np.median(queued) / max(np.median(samples.parts_s["gpu"]), 1e-9))
        if share > LAUNCH_BOUND:
            found.append(f"launching takes {share:.0%} of the GPU's time: launch-bound; CUDA graphs help")
    return found


def require_layers(options: BenchOptions, opened: Mapping[str, Opened]) -> None:
    """UsageError when --diagnose has no layers to look at."""
    for one in opened.values():
        if options.diagnose and (one.found.kind != "onnx" or not hasattr(one.runner, "layer_times")):
            raise UsageError(
                f"--diagnose {one.name}: the runtime {one.runner.name} does not tell its layers; "
                "it works on ONNX files with --runtime ort"
            )


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
