"""The steps of `edgeprune export` behind float32: fp16 and int8 files, engines. Torch-free from an ONNX file on.

A checkpoint is exported to float32 ONNX first, or the file that is there is taken when it is that checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune import artifact, count, header
from edgeprune.artifact import Artifact
from edgeprune.commands import described, files, finish, outputs
from edgeprune.commands import lowered as report
from edgeprune.device_options import ExportOptions
from edgeprune.errors import EdgePruneError, OutputExists, UsageError
from edgeprune.export import engine, int8, precision, profile, reading
from edgeprune.export.parity import Array
from edgeprune.images import Preprocess

TARGETS = ("onnx", *engine.MODULES)
PARITY_IMAGES = 512
MOST_PARITY_IMAGES = 2048
PARITY_PIXELS = MOST_PARITY_IMAGES * 128 * 128  # a few hundred MiB


@dataclass(frozen=True)
class Deployed:
    """What was made, in order: the last is what was asked for. images: how many it was proved on.

    source: the float32 file that all of it comes from.
    """

    made: tuple[Artifact, ...]
    images: int
    macs: int | None
    params: int | None
    recommended: dict[str, Any] | None = None
    source: Path | None = None


def wanted(options: ExportOptions) -> bool:
    """Whether more is asked than float32 ONNX from a checkpoint."""
    return (
        set(options.precision) != {"fp32"}
        or set(options.to) != {"onnx"}
        or bool(finish.ends_of(options))
        or Path(options.model).suffix.lower() == ".onnx"
    )


def check_words(options: ExportOptions) -> None:
    """UsageError for words that do not make sense, before anything is read."""
    for word in options.to:
        if word not in TARGETS:
            raise UsageError(f"--to {word}: expected {', '.join(TARGETS)}")
    for word in options.precision:
        if word not in precision.PRECISIONS:
            raise UsageError(f"--precision {word}: expected {', '.join(precision.PRECISIONS)}")
    if options.max_flip is not None and not 0 <= options.max_flip <= 1:
        raise UsageError(f"--max-flip {options.max_flip}: expected a share of the images, 0 to 1")
    int8.calibrations(options.calibration)
    profile.parse(options.batch)
    finish.ends_of(options)
    described.asked(options)
    profile.check_opset(options.opset)
    for word in set(options.to) & set(engine.MODULES):
        finish.build_options(options, word)
    chosen = engine.capabilities(options.compute_capability)
    if chosen and "tensorrt-rtx" not in options.to:
        raise UsageError("--compute-capability needs --to tensorrt-rtx; others build for the GPU they run on")
    if Path(options.model).suffix.lower() == ".onnx" and not options.bundle and wanted_nothing(options):
        raise UsageError(
            f"{options.model} is ONNX already; give --precision fp16 or int8, --embed-preprocess, "
            "--mean and --std, or --to tensorrt-rtx"
        )


def wanted_nothing(options: ExportOptions) -> bool:
    """Whether an ONNX file would only be copied."""
    plain = not lowers(options) and set(options.to) == {"onnx"}
    return plain and not finish.ends_of(options) and not described.asked(options)


def deploy(options: ExportOptions, export_fp32: Callable[[ExportOptions], Any]) -> Deployed:
    """Make the files of `options`; `export_fp32` writes model.onnx from a checkpoint when it is not there."""
    check_words(options)
    given = Path(options.model)
    direct = given.suffix.lower() == ".onnx"
    if direct:
        check_graph(options, given)
    folder = folder_of(options, given if direct else header.locate(given))
    if not direct:  # before the minutes that follow
        outputs.require([plain_path(options, header.locate(given))], force=True)
    source = given if direct else _float32(options, export_fp32)
    words = [w for w in precision.PRECISIONS if w in options.precision]
    stem = _stem(source)
    paths = {w: finish.free(options, folder / f"{stem}.{w}.onnx") for w in words if w != "fp32"}
    outputs.require([*paths.values()] or [folder / f"{stem}.onnx"], force=True)
    made: list[Artifact] = []
    if described.asked(options):
        made.append(
            described.write(options, source, finish.free(options, described.path_of(options, folder)))
        )
        source = made[0].path
    proof, names = proof_of(options, source) if paths else ([], [])
    count = sum(map(len, proof))
    for word in words:
        lowered = source
        if word != "fp32":
            made.append(_lower(options, source, paths[word], word, proof, names))
            lowered = made[-1].path
        if finish.ends_of(options):
            made.append(finish.attach(options, lowered, folder, options.images or target_of(options)))
            lowered = made[-1].path
        made += finish.engines(options, lowered, folder)
    advice = None
    if paths:
        report.write(folder / "report.json", source, list(paths.values()), names)
        if "int8" in paths:
            advice = report.recommend(source, paths["int8"], threads=options.threads or 1)
    first = () if direct or not made else (artifact.read(source),)
    return Deployed((*first, *made), count, *_count(source), advice, source)


def lowers(options: ExportOptions) -> bool:
    """Whether a file of lower precision is made."""
    return set(options.precision) != {"fp32"} or options.bundle is not None


def check_graph(options: ExportOptions, source: Path) -> None:
    """What an ONNX file is refused for before anything is made of it; errors as of export.reading."""
    engines_alone = not (lowers(options) or finish.ends_of(options) or described.asked(options))
    model = reading.read(source) if lowers(options) else reading.whole(source, foreign=engines_alone)
    reading.check_batch(source, model, profile.parse(options.batch))


def folder_of(options: ExportOptions, source: Path) -> Path:
    """Where files go: `output`, or beside the source; OutputExists when a file has its name."""
    folder = options.output or source.parent
    if folder.exists() and not folder.is_dir() and (wanted(options) or folder.suffix != ".onnx"):
        raise OutputExists(f"{folder}: a file is there; expected a folder")
    return folder if folder.suffix != ".onnx" or wanted(options) else folder.parent


def _stem(source: Path) -> str:
    return source.name.removesuffix(source.suffix)


def _lower(
    options: ExportOptions, source: Path, path: Path, word: str, proof: list[Array], names: list[str]
) -> Artifact:
    return precision.lower(
        source,
        path,
        word,
        images=proof or None,
        max_flip=options.max_flip,
        calibration=options.calibration,
        threads=options.threads,
        names=names,
    )


def _float32(options: ExportOptions, export_fp32: Callable[[ExportOptions], Any]) -> Path:
    """The checkpoint's float32 file: the one that is there when it is of this checkpoint and batch, else a new one."""
    source = header.locate(Path(options.model))
    path = plain_path(options, source)
    if is_of(options, source, path):
        return path
    plain = replace(
        options,
        precision=("fp32",),
        to=("onnx",),
        max_flip=None,
        compute_capability=None,
        evaluate=None,
        embed_preprocess=False,
        softmax=False,
        top_k=0,
        layout=None,
    )
    export_fp32(plain)
    return path


def plain_path(options: ExportOptions, source: Path) -> Path:
    """Where the checkpoint's float32 file is or goes."""
    given = options.output
    whole = given is not None and given.suffix == ".onnx" and not given.is_dir() and not wanted(options)
    return given if given is not None and whole else (given or source.parent) / "model.onnx"


def is_of(options: ExportOptions, source: Path, path: Path) -> bool:
    """Whether `path` is the float32 file of the checkpoint `source`, as the options ask for it."""
    if not path.is_file() or not artifact.sidecar(path).is_file():
        return False
    found = artifact.read(path)
    same = found.meta.get("batch") == str(profile.parse(options.batch))
    same = same and bool(found.meta.get("simplified")) == options.simplify
    return same and artifact.sha256(source) in found.parents


def proof_of(options: ExportOptions, source: Path) -> tuple[list[Array], list[str]]:
    """Images given, or of the run's target, as the network takes them, and their names; spread over the folder."""
    folder = options.images or target_of(options)
    if folder is None:
        return [], []
    refs, pre = files.proof_images(folder), files.preprocess(artifact.read(source))
    return files.proof_batches(refs, parity_images(pre, len(refs)), pre)


def parity_images(pre: Preprocess, found: int) -> int:
    """How many of `found` images prove a file: 512, up to 2,048 of small ones, which cost less."""
    wanted = min(MOST_PARITY_IMAGES, PARITY_PIXELS // (pre.size[0] * pre.size[1]))
    return min(max(PARITY_IMAGES, wanted), found)


def target_of(options: ExportOptions) -> Path | None:
    """The target images of the checkpoint's last run, if they are still there."""
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
