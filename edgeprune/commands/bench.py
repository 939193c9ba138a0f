"""`edgeprune bench`: artefacts -> how fast each is on this device, interleaved, and whether the difference is real.

Torch-free: a checkpoint is opened with torch only when the user asks for that runtime.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import __version__, artifact, count, images
from edgeprune.artifact import Artifact
from edgeprune.bench import inputs, machine
from edgeprune.bench.compare import compare
from edgeprune.bench.measure import Samples, measure
from edgeprune.bench.result import BenchResult, Measured
from edgeprune.bench.statistics import FLOATING_COV, summary
from edgeprune.commands import files
from edgeprune.errors import DataError, OutputExists, UsageError
from edgeprune.export.parity import logits
from edgeprune.options import BenchOptions
from edgeprune.runtime.runner import Feeds, Runner


@dataclass(frozen=True)
class BenchReport:
    """One result a row (artefact and batch), in the order given."""

    results: tuple[BenchResult, ...]
    output: Path | None
    layers: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The rows as versioned JSON documents."""
        return {
            "results": [r.to_json() for r in self.results],
            "output": str(self.output) if self.output else None,
            **({"layers": dict(self.layers)} if self.layers else {}),
        }


def bench(options: BenchOptions) -> BenchReport:
    """Measure every artefact at every batch size; with a baseline, say faster, slower or no change."""
    if not options.artifacts:
        raise UsageError(
            "nothing to measure: give ONNX files or run folders, such as: edgeprune bench runs/slim"
        )
    if options.layer_table:
        from edgeprune.commands import layers

        return BenchReport((), None, layers.bench_layers(options, options.layer_table).to_json())
    if options.output and options.output.exists() and not options.force:
        raise OutputExists(f"{options.output} exists; --force replaces it")
    words = list(dict.fromkeys([*([options.baseline] if options.baseline else []), *options.artifacts]))
    rows: list[BenchResult] = []
    for batch in _batches(options.batch):
        rows.extend(_at_batch(options, words, batch))
    if options.output:
        text = json.dumps([r.to_json() for r in rows], indent=2)
        artifact.write_atomically(options.output, text.encode())
    return BenchReport(tuple(rows), options.output)


def _batches(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--batch {text!r}: expected sizes such as 1 or 1,8")
    return sizes


def _at_batch(options: BenchOptions, words: list[str], batch: int) -> list[BenchResult]:
    with contextlib.ExitStack() as stack:
        opened: dict[str, tuple[Artifact, Runner]] = {}
        for word in words:
            found, runner = files.open_runner(word, options.runtime, options.threads, options.trust)
            opened[word] = (found, stack.enter_context(runner))
        feeds = {word: _feeds(options, found, runner, batch) for word, (found, runner) in opened.items()}
        watch = machine.Watch()
        samples = measure(
            {word: runner for word, (_, runner) in opened.items()},
            feeds,
            warmup_s=options.warmup,
            min_s=options.seconds,
            min_runs=options.runs,
            seed=options.seed,
            observe=watch,
        )
        quality = {word: _quality(options, *opened[word]) for word in words}
    host, clocks, warnings = machine.describe(), watch.to_json(), tuple(watch.warnings())
    rows = []
    for word in words:
        row = _row(options, opened[word], samples[word], batch)
        row = replace(
            row, host=host, clocks=clocks, quality=quality[word], warnings=(*row.warnings, *warnings)
        )
        if options.baseline and word != options.baseline:
            row = replace(
                row,
                verdict=compare(
                    samples[options.baseline], samples[word], vs=options.baseline, seed=options.seed
                ),
            )
        rows.append(row)
    return rows


def _feeds(options: BenchOptions, found: Artifact, runner: Runner, batch: int) -> Feeds:
    made = inputs.synthetic(runner.inputs, batch=batch, seed=options.seed)
    if options.images is None:
        return made
    refs = images.find(options.images)
    pixels, _ = next(iter(images.batches(refs, files.preprocess(found), batch)))
    name = runner.inputs[0].name
    repeated = np.resize(pixels, made[name].shape) if len(pixels) < batch else pixels[:batch]
    return {**made, name: np.ascontiguousarray(repeated.astype(made[name].dtype))}


def _row(options: BenchOptions, opened: tuple[Artifact, Runner], samples: Samples, batch: int) -> BenchResult:
    found, runner = opened
    latency = summary(samples.latency_s)
    counted = count.count(found.path) if found.kind == "onnx" else None
    warnings = []
    if not samples.settled:
        warnings.append("the warm-up did not settle within 2%: the machine is busy or its clocks move")
    if latency.cov > FLOATING_COV:
        warnings.append(f"times vary by {100 * latency.cov:.0f}% (CoV): trust the interval, not single runs")
    config = {
        **runner.settings,
        "runtime": runner.name,
        "precision": str(found.meta.get("precision", "fp32")),
        "batch": batch,
        "mode": "steady",
        "transfers": True,
        "streams": 1,
        "device": str(runner.settings.get("device", "cpu")),
        "input": str(options.images) if options.images else "random",
        "seed": options.seed,
    }
    return BenchResult(
        model=Measured(
            name=files.short_name(found.path),
            sha256=found.sha256,
            parents=found.parents,
            bytes=found.path.stat().st_size,
            macs=counted.macs if counted else None,
            params=counted.params if counted else None,
        ),
        config=config,
        host={},
        latency_ms=latency,
        throughput_ips=1e3 * batch / latency.p50,
        tool_version=__version__,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        memory={"process_peak_bytes": machine.peak_memory()},
        power=None,
        warnings=tuple(warnings),
        reasons={"power": "not measured", "gpu_ms": "no GPU in this run", "layers": "not asked for"},
    )


def _quality(options: BenchOptions, found: Artifact, runner: Runner) -> Mapping[str, Any] | None:
    return accuracy(found, runner, options.evaluate) if options.evaluate else None


def accuracy(found: Artifact, runner: Runner, folder: Path) -> dict[str, Any]:
    """Share of the labelled images in `folder` that the artefact names right; DataError when the classes differ."""
    names = files.classes(found)
    refs = [r for r in images.find(folder) if r.label is not None]
    unknown = sorted({str(r.label) for r in refs} - set(names))
    if unknown or not refs:
        raise DataError(f"{folder}: class folders {unknown[:3]} are not the model's: {', '.join(names[:8])}")
    right = seen = 0
    for batch, kept in images.batches(refs, files.preprocess(found), 32):
        for row, ref in zip(logits(runner, batch), kept, strict=True):
            right += names[int(row.argmax())] == ref.label
            seen += 1
    return {"accuracy": right / seen, "images": seen, "labels_used": "evaluation only"}
