"""The steps of `edgeprune export` behind float32: fp16 and int8 files, engines. Torch-free from an ONNX file on.

A checkpoint is exported to float32 ONNX first, or the file that is there is taken when it is that checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune import artifact, count, header, images
from edgeprune.artifact import Artifact
from edgeprune.commands import files, finish
from edgeprune.errors import EdgePruneError, OutputExists, UsageError
from edgeprune.export import engine, int8, precision, profile
from edgeprune.export.parity import Array
from edgeprune.options import ExportOptions

TARGETS = ("onnx", *engine.MODULES)
PARITY_IMAGES = 256


@dataclass(frozen=True)
class Deployed:
    """What was made, in order: the last is what was asked for. images: how many it was proved on."""

    made: tuple[Artifact, ...]
    images: int
    macs: int | None
    params: int | None


def wanted(options: ExportOptions) -> bool:
    """Whether more is asked than float32 ONNX from a checkpoint."""
    return (
        options.precision != "fp32"
        or set(options.to) != {"onnx"}
        or bool(finish.ends_of(options))
        or Path(options.model).suffix.lower() == ".onnx"
    )


def check_words(options: ExportOptions) -> None:
    """UsageError for words that do not make sense, before anything is read."""
    for word in options.to:
        if word not in TARGETS:
            raise UsageError(f"--to {word}: expected {', '.join(TARGETS)}")
    if options.precision not in precision.PRECISIONS:
        raise UsageError(f"--precision {options.precision}: expected {', '.join(precision.PRECISIONS)}")
    if options.max_flip is not None and not 0 <= options.max_flip <= 1:
        raise UsageError(f"--max-flip {options.max_flip}: expected a share of the images, 0 to 1")
    int8.calibrations(options.calibration)
    profile.parse(options.batch)
    for word in set(options.to) & set(engine.MODULES):
        finish.build_options(options, word)
    chosen = engine.capabilities(options.compute_capability)
    if chosen and "tensorrt-rtx" not in options.to:
        raise UsageError("--compute-capability needs --to tensorrt-rtx; others build for the GPU they run on")
    if Path(options.model).suffix.lower() == ".onnx" and wanted_nothing(options):
        raise UsageError(
            f"{options.model} is ONNX already; give --precision fp16 or int8, --embed-preprocess, or --to tensorrt-rtx"
        )


def wanted_nothing(options: ExportOptions) -> bool:
    """Whether an ONNX file would only be copied."""
    return options.precision == "fp32" and set(options.to) == {"onnx"} and not finish.ends_of(options)


def deploy(options: ExportOptions, export_fp32: Callable[[ExportOptions], Any]) -> Deployed:
    """Make the files of `options`; `export_fp32` writes model.onnx from a checkpoint when it is not there."""
    check_words(options)
    given = Path(options.model)
    direct = given.suffix.lower() == ".onnx"
    source = given if direct else _float32(options, export_fp32)
    folder = options.output or source.parent
    if folder.exists() and not folder.is_dir():
        raise OutputExists(f"{folder}: a file is there; expected a folder")
    made: list[Artifact] = []
    proof: list[Array] = []
    if options.precision != "fp32":
        stem = source.name.removesuffix(source.suffix)
        path = finish.free(options, folder / f"{stem}.{options.precision}.onnx")
        proof = _images(options, source)
        if options.dry_run:
            return Deployed((), sum(map(len, proof)), None, None)
        made.append(
            precision.lower(
                source,
                path,
                options.precision,
                images=proof or None,
                max_flip=options.max_flip,
                calibration=options.calibration,
                threads=options.threads,
            )
        )
    lowered = made[-1].path if made else source
    if finish.ends_of(options):
        made.append(finish.attach(options, lowered, folder, options.images or _target(options)))
        lowered = made[-1].path
    made += finish.engines(options, lowered, folder)
    counted = _count(source)
    return Deployed(tuple(made), sum(map(len, proof)), *counted)


def _float32(options: ExportOptions, export_fp32: Callable[[ExportOptions], Any]) -> Path:
    """The checkpoint's float32 file: the one that is there when it is of this checkpoint and batch, else a new one."""
    source = header.locate(Path(options.model))
    path = (options.output or source.parent) / "model.onnx"
    if path.is_file() and artifact.sidecar(path).is_file():
        found = artifact.read(path)
        same = found.meta.get("batch") == str(profile.parse(options.batch))
        same = same and bool(found.meta.get("simplified")) == options.simplify
        if same and artifact.sha256(source) in found.parents:
            return path
    if options.dry_run:
        raise UsageError(
            f"--dry-run: {path} is not there yet; export float32 first: edgeprune export {options.model}"
        )
    plain = replace(
        options,
        precision="fp32",
        to=("onnx",),
        max_flip=None,
        compute_capability=None,
        evaluate=None,
        embed_preprocess=False,
        softmax=False,
        top_k=0,
    )
    export_fp32(plain)
    return path


def _images(options: ExportOptions, source: Path) -> list[Array]:
    """Up to 256 of the images given, or of the run's target images, as the network takes them."""
    folder = options.images or _target(options)
    if folder is None:
        return []
    pre = files.preprocess(artifact.read(source))
    refs = images.find(folder)
    total = min(PARITY_IMAGES, len(refs))
    chosen = [refs[i * len(refs) // total] for i in range(total)]
    return [batch for batch, _ in images.batches(chosen, pre, 32)]


def _target(options: ExportOptions) -> Path | None:
    if Path(options.model).suffix.lower() == ".onnx":
        return None
    history = header.read(header.locate(Path(options.model))).document.get("history", [])
    for entry in reversed(history if isinstance(history, list) else []):
        target = entry.get("options", {}).get("target")
        if target and Path(target).exists():
            return Path(target)
    return None


def _count(source: Path) -> tuple[int | None, int | None]:
    meta = artifact.read(source).meta
    if "macs" in meta and "params" in meta:
        return int(meta["macs"]), int(meta["params"])
    try:
        counted = count.count(source)
    except EdgePruneError:
        return None, None
    return counted.macs, counted.params
