"""`edgeprune export --bundle DIR`: every precision that passes its gate, and what a device engineer needs beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune import artifact
from edgeprune.artifact import Artifact
from edgeprune.commands import deploy, described, finish
from edgeprune.device_options import ExportOptions
from edgeprune.errors import (
    DataError,
    MissingHere,
    ModelError,
    OutputExists,
    ParityFailed,
    UsageError,
)
from edgeprune.export import bundle as bundling
from edgeprune.export import ends as ending
from edgeprune.export import graph, precision
from edgeprune.runtime import metadata, ort


@dataclass(frozen=True)
class Bundled:
    """folder: what was written. skipped: a precision that is not in it, and why."""

    folder: Path
    files: tuple[str, ...]
    made: tuple[Artifact, ...]
    skipped: dict[str, str]


def bundle(options: ExportOptions, folder: Path, export_fp32: Callable[[ExportOptions], Any]) -> Bundled:
    """Write `folder` whole or not at all. A precision that fails its gate is left out, and the folder says why.

    OutputExists when something is there that --force may not replace; errors of the float32 file end it all.
    """
    check(options, folder)
    if Path(options.model).suffix.lower() == ".onnx":
        deploy.check_graph(options, Path(options.model))
    with graph.scratch(folder) as scratch:
        work = scratch / "bundle"
        work.mkdir()
        if Path(options.model).suffix.lower() == ".onnx":
            source = _copied(Path(options.model), work)
            if described.asked(options):
                artifact.sidecar(source).unlink()
                made_of = described.write(options, source, work / "described.onnx")
                made_of.path.replace(source)
                replace(made_of, path=source).write_sidecar()
        else:
            export_fp32(_plain(options, work))
            source = work / "model.onnx"
        made, skipped = _precisions(options, source, work)
        for stray in (p for p in work.iterdir() if not _kept(p, made)):
            stray.unlink()
        files = bundling.write(work, made, options.batch, skipped)
        _into_place(work, folder)
    return Bundled(folder, tuple(files), tuple(made), skipped)


def check(options: ExportOptions, folder: Path) -> None:
    """UsageError for words that do not go with --bundle, OutputExists when `folder` may not be replaced."""
    if set(options.precision) != {"fp32"} or set(options.to) != {"onnx"} or options.output:
        raise UsageError(
            "--bundle holds every precision, and engines are built on the board: drop --precision, --to and -o"
        )
    _free(options, folder)


def _plain(options: ExportOptions, work: Path) -> ExportOptions:
    return replace(
        options,
        bundle=None,
        output=work,
        evaluate=None,
        max_flip=None,
        embed_preprocess=False,
        softmax=False,
        top_k=0,
        layout=None,
    )


def _precisions(options: ExportOptions, source: Path, work: Path) -> tuple[list[Artifact], dict[str, str]]:
    made: list[Artifact] = []
    skipped: dict[str, str] = {}
    target = options.images or deploy.target_of(options)
    for word in precision.PRECISIONS:
        try:
            found = artifact.read(source)
            if word != "fp32":
                shown, names = deploy.proof_of(options, source)
                path = work / f"{source.stem}.{word}.onnx"
                found = precision.lower(
                    source,
                    path,
                    word,
                    images=shown or None,
                    max_flip=options.max_flip,
                    calibration=options.calibration,
                    threads=options.threads,
                    names=names,
                )
            if finish.ends_of(options):
                found = finish.attach(replace(options, force=True), found.path, work, target)
        except (ParityFailed, DataError, ModelError, MissingHere) as err:
            if word == "fp32":
                raise
            skipped[word] = str(err).replace(f"{work}{os.sep}", "")
        else:
            made.append(found)
    return made, skipped


def _kept(path: Path, made: list[Artifact]) -> bool:
    """Whether a file belongs to what is shipped: graph, its weights, its sidecar."""
    names = {a.path.name for a in made}
    return path.name in names or any(path.name in (f"{n}.json", f"{n}.data") for n in names)


def _copied(given: Path, work: Path) -> Path:
    source = work / "model.onnx"
    if not given.is_file():
        raise DataError(f"{given}: no such file; expected an ONNX file")
    if ending.SUFFIX in given.suffixes:
        raise UsageError(f"{given}: has ends already; give the float32 file without {ending.SUFFIX}")
    beside = given.with_name(given.name + ".data")
    if beside.is_file():
        shutil.copyfile(beside, work / beside.name)
        source = work / given.name
    shutil.copyfile(given, source)
    if artifact.sidecar(given).is_file():
        shutil.copyfile(artifact.sidecar(given), artifact.sidecar(source))
        return source
    with ort.open(source) as opened:  # without its sidecar, the file itself still says most
        facts = metadata.from_props(opened.metadata)
        specs = opened.inputs, opened.outputs
    Artifact(source, "onnx", artifact.sha256(source), *specs, meta=facts).write_sidecar()
    return source


def _free(options: ExportOptions, folder: Path) -> None:
    if not folder.exists():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not options.force:
        raise OutputExists(f"{folder} exists; --force replaces it")
    if not (folder / bundling.MANIFEST).is_file():
        raise OutputExists(
            f"{folder}: is no bundle of edgeprune, so --force leaves it; choose another --bundle"
        )


def _into_place(work: Path, folder: Path) -> None:
    try:
        if folder.exists():
            folder.rename(work.parent / "before")  # the scratch folder goes, and the old bundle with it
        work.rename(folder)
    except OSError as err:
        raise MissingHere(f"{folder}: cannot be written ({err.strerror}); choose another --bundle") from err
