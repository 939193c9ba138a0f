"""What every working command does first: seeds, threads, checks of words, and the facts for the history."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import platform
import shlex
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import __version__
from edgeprune.errors import UsageError
from edgeprune.options import ModelOptions, RunOptions

if TYPE_CHECKING:
    from edgeprune.data.pixels import Pixels
    from edgeprune.model import Network
    from edgeprune.run import Run


def required(value: Path | None, flag: str, what: str) -> Path:
    """The path, or a UsageError that names the option which is missing."""
    if value is None:
        raise UsageError(f"{flag} is missing: {what}")
    return value


# Field -> (lowest, highest) that makes sense.
_RANGES: Mapping[str, tuple[float, float]] = {
    "steps": (0, math.inf),
    "source_steps": (0, math.inf),
    "iterations": (1, math.inf),
    "batch": (1, math.inf),
    "accumulate": (1, math.inf),
    "multiple": (1, math.inf),
    "threads": (0, math.inf),
    "weight_decay": (0, math.inf),
    "recover": (0, math.inf),
    "between": (0, math.inf),
    "floor": (0, 1),
    "then_share": (0, 1),
    "ema": (0, 1),
    "crop": (0, 1),
    "seed": (0, 2**32 - 1),
    "hold_out": (0, 0.9),
    "lr": (0, math.inf),
}


# Field -> the end of its range that is itself not allowed (an average with decay 1 stays at the first weights).
_OPEN: Mapping[str, float] = {"lr": 0, "crop": 0, "ema": 1}


def check_numbers(options: Any) -> None:
    """UsageError for a number that makes no sense, before anything is read or written."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in _RANGES or value is None:
            continue
        low, high = _RANGES[field.name]
        if not low <= value <= high or not math.isfinite(value) or _OPEN.get(field.name) == value:
            flag = (*field.metadata.get("flags", ()), f"--{field.name.replace('_', '-')}")[0]
            raise UsageError(f"{flag} {value}: expected {_range(field.name)}")


def _range(name: str) -> str:
    low, high = _RANGES[name]
    out = _OPEN.get(name)
    if not math.isfinite(high):
        return f"a number above {low:g}" if out == low else f"{low:g} or more"
    if out == low:
        return f"above {low:g}, at most {high:g}"
    return f"{low:g} or more, less than {high:g}" if out == high else f"{low:g} to {high:g}"


def log_skipped(run: Run, *sets: Pixels | None) -> None:
    """List in the run's log every file that could not be read."""
    for pixels in sets:
        for lost in pixels.skipped if pixels is not None else ():
            run.log(f"skipped, cannot be read: {lost}")


def untaught(options: ModelOptions) -> str:
    """A warning when the network comes without weights; nothing where it has some."""
    if options.weights != "none":
        return ""
    return (
        "--weights none: unless what makes the network loads weights that were trained, its answers are chance, and "
        "there is nothing to adapt or to prune: give --weights FILE, or train it by `adapt --source DIR`"
    )


def begun_anew(options: RunOptions, run: Run) -> list[str]:
    """A warning when --resume found nothing to go on with."""
    return [f"--resume: nothing was begun in {run.path}, so the run started anew"] * (
        options.resume and not run.resumed
    )


def unread(pixels: Pixels, flag: str) -> list[str]:
    """A warning when files could not be read."""
    lost, names = len(pixels.skipped), ", ".join(str(one) for one in pixels.skipped[:3])
    names += ", …" * (lost > 3)
    return [f"{flag}: {lost} of {lost + len(pixels)} files cannot be read and were left out: {names}"] * (
        lost > 0
    )


def evaluated(root: Path, network: Network, cache: Path | None) -> Pixels:
    """The labelled images of --evaluate; those of a class that the network dropped have the label -1, never right."""
    import torch

    from edgeprune import absent
    from edgeprune.data import folder

    names = (*network.classes, *network.dropped)
    found = folder.labelled(root, network.preprocess, names, cache)
    return absent.relabelled(found, network.classes, torch.arange(len(network.classes)))


def never_right(labelled: Pixels | None) -> list[str]:
    """A warning when images of --evaluate are of classes that the network dropped."""
    count = int((labelled.labels < 0).sum()) if labelled is not None and labelled.labels is not None else 0
    return [
        f"--evaluate: {count} of {len(labelled or ())} images are of classes that the network dropped, so no answer is "
        "right for them"
    ] * (count > 0)


def without_dropped(network: Network, root: Path | None, flag: str = "--source") -> list[str]:
    """A warning when labelled images have folders of classes that the network no longer has; they are left out."""
    from edgeprune import images

    there = images.classes(images.find(root)) if root is not None and network.dropped else ()
    gone = [name for name in there if name in network.dropped]
    return [f"{flag} {root}: left out are classes that the network dropped: {', '.join(gone)}"] * bool(gone)


def lacking(network: Network, source: Pixels | None) -> list[str]:
    """A warning when the source holds no image of some of the network's classes."""
    if source is None or source.labels is None:
        return []
    there = set(source.labels.tolist())
    gone = [name for label, name in enumerate(network.classes) if label not in there]
    if not gone:
        return []
    names = ", ".join(gone[:8]) + ", …" * (len(gone) > 8)
    return [
        f"--source: no image of {len(gone)} of {len(network.classes)} classes; what learns from it forgets {names}"
    ]


def words(*parts: object) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(str(part) for part in parts)


def trusted(network: Network) -> tuple[str, ...]:
    """The words that let a command open a run whose network comes from a factory of the user's."""
    from edgeprune.checkpoint import needs_trust

    return ("--trust", network.spec) if needs_trust(network.spec) else ()


def seed_everything(options: RunOptions) -> None:
    """Seed torch, numpy and random, and set the CPU threads; the same seed gives the same run on one CPU process."""
    import torch
    from lightning_fabric import seed_everything as fabric_seed

    fabric_seed(options.seed, verbose=False)
    if options.threads:
        torch.set_num_threads(options.threads)


def training(options: RunOptions) -> None:
    """What training wants of this process: seeds and threads, freed memory kept, denormal numbers taken for 0.

    The process that called stays so, also where a command is called from Python.
    """
    seed_everything(options)
    keep_freed_memory()
    flush_denormals()


_FOR_MALLOC = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Let the C library keep what torch frees instead of giving it back to the system; whether it took it.

    glibc maps every large tensor anew, and each of its pages faults when it is first written: a third of the time of
    training a depthwise network on a CPU. What a user says about it in the environment stands; others than glibc are
    left alone. The constants are those of <malloc.h>.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _FOR_MALLOC):
        return False
    trim_threshold, mmap_max = -1, -4
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))


def flush_denormals() -> bool:
    """Have this thread, and those it begins, take numbers below the smallest normal one for 0; False if it cannot.

    Gradients of images that hardly count come that low, and each product of one takes many times as long: `dann`
    for a target without some classes trained four times slower. Threads begun before keep to theirs.
    """
    import torch

    return torch.set_flush_denormal(True)


def config(options: Any) -> dict[str, Any]:
    """The options as plain values for TOML and JSON: paths as strings, what was not given left out."""
    plain = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, Path):
            value = str(value)
        if value is not None:
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def history_entry(command: str, options: Any, **facts: Any) -> dict[str, Any]:
    """What a checkpoint remembers of one command: resolved options, versions, machine, and the given facts."""
    return {
        "command": command,
        "options": config(options),
        "versions": versions(),
        "machine": platform.platform(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **facts,
    }


def versions() -> dict[str, str]:
    """Versions of edgeprune and of the libraries that decide a result."""
    found = {"edgeprune": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "torch-pruning", "numpy", "onnx", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
