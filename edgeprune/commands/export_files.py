"""What `edgeprune export` will write, before it does (--dry-run), and what it wrote: one row a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgeprune import artifact, header
from edgeprune.artifact import Artifact
from edgeprune.commands import deploy, described, files, finish, outputs
from edgeprune.device_options import ExportOptions
from edgeprune.errors import DataError, ParityFailed, UsageError
from edgeprune.export import bundle as bundling
from edgeprune.export import ends, engine, precision, profile
from edgeprune.images import Preprocess


def rows(made: Iterable[Artifact]) -> tuple[dict[str, Any], ...]:
    """A row for each ONNX file: its parity with the step before it; of a file with ends, with the one without."""
    found = []
    for one in (a for a in made if a.kind == "onnx"):
        held = one.meta.get("ends") or one.meta
        parity = held.get("parity") or {}
        row = {"file": one.path.name, "precision": str(one.meta.get("precision", "fp32"))}
        keys = ("flips", "ties", "relative", "cosine", "n")
        known = {("images" if key == "n" else key): parity.get(key) for key in keys}
        found.append({**row, "bytes": one.path.stat().st_size if one.path.is_file() else None, **known})
    return tuple(found)


def plan(options: ExportOptions) -> dict[str, Any]:
    """What would be done and written, every word checked; nothing is written. Errors as of the real run."""
    source = Path(options.model)
    direct = source.suffix.lower() == ".onnx"
    if direct:
        deploy.check_graph(options, source)
    else:
        source = header.locate(source)
    _fewer_than_classes(options, source, direct)
    proof = options.images or deploy.target_of(options)
    if proof is None and "int8" in options.precision:
        raise ParityFailed("--precision int8 is calibrated on images and received none; give --images DIR")
    count = len(files.proof_images(proof)) if proof else 0
    written = _files(options, source, direct)
    outputs.require(written[:1], force=True)
    return {
        "source": str(source),
        "folder": str(options.bundle or deploy.folder_of(options, source)),
        "files": [str(path.name) for path in written],
        "precision": list(precision.PRECISIONS if options.bundle else options.precision),
        "batch": str(profile.parse(options.batch))
        if not direct or set(options.to) != {"onnx"}
        else "as it is",
        "opset": None if direct else options.opset,
        "images": str(proof) if proof else "random numbers: nothing is known of the answers on real images",
        "parity_images": _shown(options, source, direct, count),
    }


def _shown(options: ExportOptions, source: Path, direct: bool, count: int) -> int:
    """On how many of `count` images the last proof will be made."""
    if deploy.lowers(options):
        return deploy.parity_images(_preprocess(options, source, direct), count) if count else 0
    if direct and not finish.ends_of(options):
        return 0  # an engine does not run here, and a described file is the same network
    return min(finish.PARITY_IMAGES, count)


def _preprocess(options: ExportOptions, source: Path, direct: bool) -> Preprocess:
    if described.asked(options):
        return described.preprocess(options, source)
    if direct:
        return files.preprocess(artifact.read(source))
    return Preprocess.from_json(header.read(source).document["preprocess"])


def _fewer_than_classes(options: ExportOptions, source: Path, direct: bool) -> None:
    if not options.top_k:
        return
    try:
        found = Artifact(source, "onnx" if direct else "checkpoint")
        count = len(files.classes(found))
    except DataError:
        return  # a file that does not name its classes: the graph tells, when it is made
    if options.top_k > count:
        raise UsageError(f"--top-k {options.top_k}: the network has {count} classes")


def _files(options: ExportOptions, source: Path, direct: bool) -> Sequence[Path]:
    """The files that the run would write, in order; OutputExists for one that is there and may not be replaced."""
    folder = deploy.folder_of(options, source)
    if options.bundle:
        end = ends.SUFFIX if finish.ends_of(options) else ""
        names = [f"model{'' if w == 'fp32' else f'.{w}'}{end}.onnx" for w in precision.PRECISIONS]
        return [options.bundle / name for name in (*names, *bundling.BESIDE, bundling.SUMS)]
    plain = source if direct else deploy.plain_path(options, source)
    stem = plain.stem
    if described.asked(options):
        plain = finish.free(options, described.path_of(options, folder))
    made = (
        []
        if (direct and plain == source) or (not direct and deploy.is_of(options, source, plain))
        else [plain]
    )
    if not deploy.wanted(options):
        made = [finish.free(options, plain)]
    for word in (w for w in precision.PRECISIONS if w in options.precision):
        last = plain
        if word != "fp32":
            last = finish.free(options, folder / f"{stem}.{word}.onnx")
            made.append(last)
        if finish.ends_of(options):
            last = finish.free(options, folder / f"{last.stem}{ends.SUFFIX}.onnx")
            made.append(last)
        made += [finish.engine_path(options, last, folder, to) for to in options.to if to in engine.MODULES]
    return made
