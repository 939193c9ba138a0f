"""The last steps of `edgeprune export` on a proved ONNX file: its ends, then engines. Torch-free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeprune import artifact
from edgeprune.artifact import Artifact
from edgeprune.commands import files
from edgeprune.device_options import ExportOptions
from edgeprune.errors import OutputExists, UsageError
from edgeprune.export import ends as ending
from edgeprune.export import engine
from edgeprune.export.ends import Ends

PARITY_IMAGES = 256


def ends_of(options: ExportOptions) -> Ends:
    """The ends that were asked for; UsageError for words that do not make sense."""
    if options.layout and not options.embed_preprocess:
        raise UsageError(
            f"--layout {options.layout} is of the pixels that --embed-preprocess takes; give both"
        )
    layout = (options.layout or "nhwc").lower()
    asked = Ends(layout, options.softmax or options.top_k > 0, options.top_k)
    return asked if options.embed_preprocess else replace(asked, layout="")


def attach(options: ExportOptions, source: Path, folder: Path, proof: Path | None) -> Artifact:
    """Write `source` with the ends of `options` as NAME.e2e.onnx, proved on up to 256 images of `proof`."""
    path = free(options, folder / f"{source.stem}{ending.SUFFIX}.onnx")
    shown = pixels(source, proof) if proof is not None else None
    return ending.attach(source, path, ends_of(options), pixels=shown, threads=options.threads)


def pixels(source: Path, folder: Path) -> list[NDArray[np.uint8]]:
    """Up to 256 images spread over a folder, resized for `source`: (n, H, W, 3) uint8 each."""
    pre = replace(files.preprocess(artifact.read(source)), layout="nhwc")
    return files.proof_batches(files.proof_images(folder), PARITY_IMAGES, pre)[0]


def engines(options: ExportOptions, source: Path, folder: Path) -> list[Artifact]:
    """One engine for each runtime that `--to` names, of the ONNX file `source`."""
    return [_engine(options, source, folder, word) for word in options.to if word != "onnx"]


def build_options(options: ExportOptions, word: str) -> engine.BuildOptions:
    """What `--to WORD` is built with; UsageError when the words do not go together."""
    rtx = word == "tensorrt-rtx"
    return engine.BuildOptions(
        word,
        options.batch,
        engine.capabilities(options.compute_capability) if rtx else (),
        options.workspace,
        options.optimization_level,
        options.timing_cache,
        options.version_compatible,
        options.hardware_compatible,
        options.dla,
    )


def _engine(options: ExportOptions, source: Path, folder: Path, word: str) -> Artifact:
    return engine.build(source, engine_path(options, source, folder, word), build_options(options, word))


def engine_path(options: ExportOptions, source: Path, folder: Path, word: str) -> Path:
    """Where the engine of `source` for `--to WORD` goes."""
    stem = source.name.removesuffix(source.suffix)
    if not any(part in ("fp32", "fp16", "int8") for part in stem.split(".")):
        stem += ".fp32"
    several = len(set(options.to) & set(engine.MODULES)) > 1
    return free(options, folder / (f"{stem}.{word}.engine" if several else f"{stem}.engine"))


def free(options: ExportOptions, path: Path) -> Path:
    """`path` when nothing is there, or when --force may replace what is; else OutputExists."""
    if not path.exists():
        return path
    if not options.force:
        raise OutputExists(f"{path} exists; --force replaces it")
    if not artifact.sidecar(path).is_file():
        raise OutputExists(
            f"{path}: was not made by edgeprune export, so --force leaves it; choose another with -o"
        )
    return path
