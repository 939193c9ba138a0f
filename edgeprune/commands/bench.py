"""`edgeprune bench`: artefacts -> how fast each is on this device, interleaved, and whether the difference is real.

Torch-free: a checkpoint is opened with torch only when the user asks for that runtime.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune import __version__, images
from edgeprune.artifact import Artifact
from edgeprune.bench import machine, modes, trtexec
from edgeprune.bench.measure import Samples, measure
from edgeprune.bench.result import DOCUMENT, BenchResult
from edgeprune.commands import bench_against, bench_check, bench_files, bench_rows, files, outputs
from edgeprune.commands.bench_against import Baseline
from edgeprune.commands.bench_open import FPS, Opened, Setting, open_all, open_one
from edgeprune.device_options import BenchOptions
from edgeprune.errors import DataError
from edgeprune.runtime import answers
from edgeprune.runtime.runner import Runner


@dataclass(frozen=True)
class BenchReport:
    """One result a row (artefact, batch and threads), in the order given."""

    results: tuple[BenchResult, ...]
    output: Path | None
    layers: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One versioned JSON document, the same on stdout and in the file that -o names."""
        return {
            "schema": DOCUMENT,
            "results": [r.to_json() for r in self.results],
            "output": str(self.output) if self.output else None,
            "warnings": list(self.warnings),
            **({"layers": dict(self.layers)} if self.layers else {}),
        }


def bench(options: BenchOptions) -> BenchReport:
    """Measure every artefact at every batch and number of threads; with a baseline, say faster, slower or no change."""
    if options.layer_table:
        from edgeprune.commands import layers

        bench_check.require_artifacts(options)
        outputs.require([options.layer_table], options.force)
        return BenchReport((), None, layers.bench_layers(options, options.layer_table).to_json())
    outputs.require([options.output, options.csv, options.markdown], options.force)
    imported = [trtexec.read(options.import_trtexec, __version__)] if options.import_trtexec else []
    if imported and not options.artifacts:
        bench_check.import_alone(options)
        shown = BenchReport(tuple(imported), options.output)
        bench_files.write(options, imported, shown.to_json())
        return shown
    bench_check.check(options)
    bench_check.two_sides(options)
    settings, baseline = list(bench_check.sweep(options)), bench_against.read(options)
    bench_against.require_settings(options, baseline, settings)
    words = list(dict.fromkeys([*([baseline.word] if baseline.word else []), *options.artifacts]))
    bench_check.runtimes(options, words)
    busy = machine.busy(machine.state())
    found: dict[bench_rows.Key, BenchResult] = {}
    measured: dict[str, Path] = {}
    for setting in settings:
        for opened, row in _at(options, words, baseline, setting):
            measured[opened.word] = opened.found.path
            found[opened.word, setting] = replace(row, warnings=(*row.warnings, *busy))
    if options.diagnose and baseline.word:
        found = bench_rows.with_diagnosis(found, measured, baseline.word)
    rows = list(found.values())
    said = [bench_files.remember(measured[w], r) for (w, _), r in found.items()] if options.history else []
    report = BenchReport((*rows, *imported), options.output, warnings=tuple(filter(None, said)))
    bench_files.write(options, report.results, report.to_json())
    return report


def _at(
    options: BenchOptions, words: list[str], baseline: Baseline, setting: Setting
) -> list[tuple[Opened, BenchResult]]:
    """Measure all artefacts at one setting, interleaved."""
    with contextlib.ExitStack() as stack:
        opened = open_all(options, words, setting, stack)
        bench_rows.require_layers(options, opened)
        host = machine.describe()
        unlike = bench_against.unlike(options, baseline, opened, host)
        watch = machine.Watch()
        samples = _samples(options, opened, setting, watch)
        shared = {"host": host, "clocks": watch.to_json()}
        quality = {
            w: accuracy(o.found, o.runner, options.evaluate) for w, o in opened.items() if options.evaluate
        }
        rows = {w: bench_rows.row(options, o, samples[w], shared) for w, o in opened.items()}
    made = []
    for word, row in rows.items():
        whole = replace(row, quality=quality.get(word), warnings=(*row.warnings, *watch.warnings()))
        verdict = bench_against.beside(options, baseline, samples, word) or bench_against.before(
            options, baseline, whole
        )
        made.append((opened[word], bench_against.judged(whole, verdict, unlike.get(word, ()))))
    return made


def _samples(
    options: BenchOptions, opened: Mapping[str, Opened], setting: Setting, watch: machine.Watch
) -> dict[str, Samples]:
    feeds = {word: one.feeds for word, one in opened.items()}
    timing: dict[str, Any] = {
        "warmup_s": options.warmup,
        "min_s": options.seconds,
        "min_runs": options.runs,
        "seed": options.seed,
        "observe": watch,
    }
    runners = {word: one.runner for word, one in opened.items()}
    if options.mode == "paced":
        return modes.paced(runners, feeds, fps=options.fps or FPS, plan=modes.Plan(**timing))
    if options.mode == "throughput":
        many = {word: one.runners for word, one in opened.items()}
        return modes.throughput(many, feeds, plan=modes.Plan(**timing))
    if options.mode == "cold":
        openers = {w: lambda w=w: open_one(options, w, setting)[1] for w in opened}
        return modes.cold(openers, feeds, plan=modes.Plan(**timing))
    return measure(runners, feeds, **timing)


def accuracy(found: Artifact, runner: Runner, folder: Path) -> dict[str, Any]:
    """Share of the labelled images in `folder` that the artefact names right; DataError when the classes differ."""
    names = files.classes(found)
    refs = [r for r in images.find(folder) if r.label is not None]
    unknown = sorted({str(r.label) for r in refs} - set(names))
    if unknown or not refs:
        raise DataError(f"{folder}: class folders {unknown[:3]} are not the model's: {', '.join(names[:8])}")
    right = seen = 0
    for batch, kept in images.batches(refs, files.preprocess(found), 32):
        best, _ = answers.ranked(runner, batch, 1)
        for row, ref in zip(best, kept, strict=True):
            right += names[int(row[0])] == ref.label
            seen += 1
    return {"accuracy": right / seen, "images": seen, "labels_used": "evaluation only"}
