"""What every working command does first: seeds, threads, checks of words, and the facts for the history."""

from __future__ import annotations

import dataclasses
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeprune import __version__
from edgeprune.errors import UsageError
from edgeprune.options import RunOptions


def required(value: Path | None, flag: str, what: str) -> Path:
    """The path, or a UsageError that names the option which is missing."""
    if value is None:
        raise UsageError(f"{flag} is missing: {what}")
    return value


def seed_everything(options: RunOptions) -> None:
    """Seed torch, numpy and random, and set the CPU threads; the same seed gives the same run on one CPU process."""
    import torch
    from lightning_fabric import seed_everything as fabric_seed

    fabric_seed(options.seed, verbose=False)
    if options.threads:
        torch.set_num_threads(options.threads)


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
