"""What `edgeprune bench` opens: artefacts under one setting, their input, and what their rows record."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgeprune import images
from edgeprune.artifact import Artifact
from edgeprune.bench import inputs, machine, memory
from edgeprune.commands import files
from edgeprune.device_options import BenchOptions
from edgeprune.errors import DataError, UsageError
from edgeprune.runtime.runner import Feeds, Runner

TORCH = ("torch", "torch-compile")
FPS = 30.0
STREAMS = 2


@dataclass(frozen=True)
class Setting:
    """One point of the sweep."""

    batch: int
    threads: int


@dataclass(frozen=True)
class Opened:
    """One artefact, ready: a runner for each stream. memory, reasons: as a row has them."""

    word: str
    found: Artifact
    runners: tuple[Runner, ...]
    feeds: Feeds
    config: Mapping[str, Any]
    memory: Mapping[str, Any]
    reasons: Mapping[str, str]

    @property
    def runner(self) -> Runner:
        """The first, and in most modes the only one."""
        return self.runners[0]

    @property
    def name(self) -> str:
        """What tables call it."""
        return files.short_name(self.found.path)

    @property
    def inputs(self) -> tuple[dict[str, Any], ...]:
        """The inputs as the runtime has them, as JSON values."""
        return tuple({**asdict(spec), "shape": list(spec.shape)} for spec in self.runner.inputs)


def open_all(
    options: BenchOptions, words: list[str], setting: Setting, stack: contextlib.ExitStack
) -> dict[str, Opened]:
    """Open every artefact; the runners are closed with `stack`."""
    return {word: _open(options, word, setting, stack) for word in words}


def _open(options: BenchOptions, word: str, setting: Setting, stack: contextlib.ExitStack) -> Opened:
    count = streams(options)

    def work() -> tuple[Artifact, tuple[Runner, ...], Feeds]:
        pairs = []
        for _ in range(count):
            found, runner = open_one(options, word, setting)
            pairs.append((found, stack.enter_context(runner)))
        runners = tuple(runner for _, runner in pairs)
        feeds = feeds_of(options, pairs[0][0], runners[0], setting.batch)
        for runner in runners:
            runner.infer(feeds)
        return pairs[0][0], runners, feeds

    (found, runners, feeds), peak, why = memory.peak_of(work)
    held = {
        "process_peak_bytes": machine.peak_memory(),
        "runner_peak_bytes": peak,
        "device_bytes": runners[0].settings.get("device_memory_bytes"),
    }
    reasons = {"memory.runner_peak_bytes": why} if why else {}
    if held["device_bytes"] is None:
        reasons["memory.device_bytes"] = f"the {runners[0].name} runtime does not tell it"
    config = _config(options, found, runners[0], setting)
    return Opened(word, found, runners, feeds, config, held, reasons)


def streams(options: BenchOptions) -> int:
    """How many runners work at once."""
    return (options.streams or STREAMS) if options.mode == "throughput" else 1


def find(options: BenchOptions, word: str) -> tuple[Artifact, str]:
    """The artefact a word stands for, and the runtime: "auto" for an engine whose sidecar will say."""
    runtime = options.runtime
    if word.endswith(".json"):
        raise DataError(f"{word}: a result, not a network; --baseline {word} compares with it")
    found = files.find(word, "torch" if runtime in TORCH else runtime)
    if runtime == "auto":
        runtime = {"checkpoint": "torch", "onnx": "ort"}.get(found.kind, "auto")
    return found, runtime


def open_one(options: BenchOptions, word: str, setting: Setting) -> tuple[Artifact, Runner]:
    """The artefact a word stands for and a runner of its own, as the options say."""
    found, runtime = find(options, word)
    if runtime == "ort" and found.kind == "onnx":
        from edgeprune.runtime import ort

        return found, ort.open(
            found,
            threads=setting.threads,
            provider=options.provider,
            spinning=options.spin,
            io_binding=options.io_binding,
        )
    if runtime in TORCH and found.kind == "checkpoint":
        return found, _open_torch(options, found, setting, runtime == "torch-compile")
    if runtime in TORCH or runtime == "ort":
        raise UsageError(f"--runtime {runtime} does not run {found.path} (a file of kind {found.kind})")
    return files.open_runner(word, runtime, setting.threads, options.trust)


def _open_torch(options: BenchOptions, found: Artifact, setting: Setting, compiled: bool) -> Runner:
    from edgeprune import checkpoint
    from edgeprune.artifact import TensorSpec
    from edgeprune.runtime import torch as torch_runtime

    network = checkpoint.read(found.path, options.trust)
    given = [TensorSpec("images", ("batch", 3, *network.preprocess.size))]
    told = [TensorSpec("logits", ("batch", len(network.classes)))]
    return torch_runtime.open(
        network.module,
        given,
        told,
        threads=setting.threads,
        device=options.device or "cpu",
        compiled=compiled,
    )


def feeds_of(options: BenchOptions, found: Artifact, runner: Runner, batch: int) -> Feeds:
    """The arrays that a runner is timed on: random, zeros, or the first images of `--images`."""
    made = inputs.synthetic(runner.inputs, batch=batch, kind=options.input or "random", seed=options.seed)
    if options.images is None:
        return made
    refs = images.find(options.images)
    pixels, _ = next(iter(images.batches(refs, files.preprocess(found), batch)))
    name = runner.inputs[0].name
    repeated = np.resize(pixels, made[name].shape) if len(pixels) < batch else pixels[:batch]
    return {**made, name: np.ascontiguousarray(repeated.astype(made[name].dtype))}


def settings_of(options: BenchOptions, setting: Setting) -> dict[str, Any]:
    """The part of a row's settings that the command line alone decides."""
    return {
        "batch": setting.batch,
        "threads": setting.threads,
        "mode": options.mode,
        "fps": (options.fps or FPS) if options.mode == "paced" else None,
        "streams": streams(options),
        "input": "real" if options.images is not None else options.input or "random",
    }


def _config(options: BenchOptions, found: Artifact, runner: Runner, setting: Setting) -> dict[str, Any]:
    device = str(runner.settings.get("device", "cpu"))
    return {
        "transfers": True,
        **runner.settings,
        "runtime": runner.name,
        "precision": str(found.meta.get("precision", "fp32")),
        **settings_of(options, setting),
        "device": device if device.startswith(("cpu", "cuda")) else "cuda",
        "device_name": device,
        "images": str(options.images) if options.images is not None else None,
        "seed": options.seed,
    }
