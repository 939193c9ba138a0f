"""`edgeprune export`: a checkpoint -> ONNX beside it, proved equal on the user's own images before it gets its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune import artifact, header, images
from edgeprune.artifact import Artifact
from edgeprune.commands import bundle, deploy, export_files, files, finish, outputs, start
from edgeprune.commands.bench import accuracy
from edgeprune.device_options import ExportOptions
from edgeprune.errors import OutputExists
from edgeprune.export import parity as parities
from edgeprune.export import reading
from edgeprune.export.parity import FP32, Array
from edgeprune.runtime import ort

PARITY_IMAGES = 256


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how equal it is. Parity counts images; see edgeprune.export.parity."""

    file: Path | None
    macs: int | None
    params: int | None
    bytes: int | None
    exporter: str | None
    parity: dict[str, Any] | None
    parity_images: int
    accuracy: float | None
    next: str | None
    precision: str = "fp32"
    lowered: dict[str, Any] | None = None
    engines: tuple[dict[str, Any], ...] = ()
    recommended: dict[str, Any] | None = None
    layers: dict[str, Any] | None = None
    bundle: dict[str, Any] | None = None
    files: tuple[dict[str, Any], ...] = ()
    plan: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "file": str(self.file) if self.file else None}


def export(options: ExportOptions) -> ExportResult:
    """Write `model.onnx` into the run folder or `output`, or to the .onnx file that `output` names.

    With another precision or an engine the files are model.fp16.onnx, model.int8.engine ...; see deploy.py.
    ParityFailed keeps the file as model.failed.onnx. With `dry_run` nothing is written.
    """
    if options.layers:
        from edgeprune.commands import layers

        wrote = layers.export_layers(options)
        return ExportResult(None, None, None, None, None, None, 0, None, wrote.next, layers=wrote.to_json())
    deploy.check_words(options)
    if options.bundle:
        bundle.check(options, options.bundle)
    if options.dry_run:
        planned = export_files.plan(options)
        count = planned["parity_images"]
        return ExportResult(None, None, None, None, None, None, count, None, None, plan=planned)
    if options.bundle:
        return _bundled(options, options.bundle)
    if deploy.wanted(options):
        return _deployed(options, deploy.deploy(options, export))
    from edgeprune import checkpoint
    from edgeprune.export import onnx as onnx_export

    start.seed_everything(options)
    source = header.locate(Path(options.model))
    path = _place(options, source)
    network = checkpoint.read(source, options.trust)
    for name, value in network.module.state_dict().items():
        if value.is_floating_point():
            reading.require_numbers(source, name, value.float().cpu().numpy())
    proof = _proof(options, network.history)
    batches, names = _batches(proof, network.preprocess)
    made = onnx_export.export(
        network,
        path,
        batch=options.batch,
        opset=options.opset,
        images=batches or None,
        slim=options.simplify,
        tolerance=_tolerance(options),
        parents=(artifact.sha256(source),),
    )
    return _result(options, _named(made, proof, names), sum(len(b) for b in batches))


def _tolerance(options: ExportOptions) -> parities.Tolerance:
    """What the file may differ from the network: FP32's, or with the share of flips that the user allows."""
    return FP32 if options.max_flip is None else parities.Tolerance("fp32", FP32.relative, options.max_flip)


def _named(made: Artifact, folder: Path | None, names: list[str]) -> Artifact:
    """The file, its sidecar saying which images differ most by name, and below which folder they lie."""
    if folder is None:
        return made
    parity = dict(made.meta["parity"])
    parity["worst"] = [parities.named(row, names) for row in parity["worst"]]
    known = replace(made, meta={**made.meta, "parity": parity, "parity_folder": str(folder.resolve())})
    known.write_sidecar()
    return known


def _bundled(options: ExportOptions, folder: Path) -> ExportResult:
    """The result of --bundle: one row a file."""
    done = bundle.bundle(options, folder, export)
    first = done.made[0]
    made = [replace(a, path=folder / a.path.name) for a in done.made]
    found = {k: v for k, v in first.meta.get("parity", {}).items() if k != "worst"}
    return ExportResult(
        folder,
        first.meta.get("macs"),
        first.meta.get("params"),
        None,
        first.meta.get("exporter"),
        found or None,
        int(found.get("n", 0)),
        None,
        start.words("python", folder / "classify.py", folder / first.path.name, "IMAGE"),
        bundle={"files": list(done.files), "skipped": done.skipped},
        files=export_files.rows(made),
    )


def _result(options: ExportOptions, made: Artifact, count: int) -> ExportResult:
    right = None
    if options.evaluate:
        with ort.open(made, threads=options.threads) as runner:
            right = accuracy(made, runner, options.evaluate)["accuracy"]
    found = dict(made.meta["parity"])
    found.pop("worst", None)
    return ExportResult(
        made.path,
        made.meta["macs"],
        made.meta["params"],
        made.path.stat().st_size,
        made.meta["exporter"],
        found,
        count or 8,
        right,
        start.words("edgeprune", "bench", made.path),
        files=export_files.rows([made]),
    )


def _deployed(options: ExportOptions, done: deploy.Deployed) -> ExportResult:
    """The result of lower precisions and engines: numbers of the ONNX file, one entry an engine."""
    onnx_files = [a for a in done.made if a.kind == "onnx"]
    last = done.made[-1] if done.made else None
    meta = dict(last.meta) if last else {}
    right = None
    if options.evaluate and onnx_files:
        with ort.open(onnx_files[-1], threads=options.threads) as runner:
            right = accuracy(onnx_files[-1], runner, options.evaluate)["accuracy"]
    shown = onnx_files[-1].meta if onnx_files else {}  # an engine has not run here: it has no parity
    found = {k: v for k, v in (shown.get("ends") or shown).get("parity", {}).items() if k != "worst"}
    best = onnx_files[-1].path if onnx_files else None
    if (done.recommended or {}).get("take") == "fp32":
        best = done.source
    lowered = _told(meta.get("lowered", {}))
    engines = [_engine(a) for a in done.made if a.kind == "engine"]
    return ExportResult(
        last.path if last else None,
        done.macs,
        done.params,
        last.path.stat().st_size if last else None,
        meta.get("exporter"),
        found or None,
        done.images or int(found.get("n", 0)),
        right,
        start.words("edgeprune", "bench", best) if best else None,
        str(meta.get("precision", "fp32")),
        lowered or None,
        tuple(engines),
        recommended=done.recommended,
        files=export_files.rows(done.made),
    )


def _told(lowered: Mapping[str, Any]) -> dict[str, Any]:
    """How the last file was lowered; the sidecar has all that was tried."""
    said = {k: v for k, v in lowered.items() if k not in ("tried", "corrected")}
    tried = lowered.get("corrected")
    if tried:
        word = "taken" if lowered.get("biases_corrected") else "tried and not taken"
        said["bias_correction"] = (
            f"{word}: {tried['flips']} of {tried['n']} flipped, cosine {tried['cosine']:.7f}"
        )
    return said


def _engine(made: Artifact) -> dict[str, Any]:
    """One row of the result; the sidecar has the rest."""
    facts = made.meta["engine"]
    layers = ", ".join(f"{n} {kind}" for kind, n in facts["layers"].items())
    size = made.path.stat().st_size
    row = {"engine": made.path.name, "built_for": made.device or "not known", "version": facts["version"]}
    return {**row, "bytes": size, "layers": layers}


def _place(options: ExportOptions, source: Path) -> Path:
    """Where the ONNX file goes: beside the checkpoint, into the folder `output`, or to the .onnx file it names."""
    folder = options.output or source.parent
    path = folder if folder.suffix == ".onnx" and not folder.is_dir() else folder / "model.onnx"
    if path.parent.exists() and not path.parent.is_dir():
        raise OutputExists(f"{path.parent}: a file is there; expected a folder, or a name that ends in .onnx")
    outputs.require([path], force=True)
    return finish.free(options, path)


def _proof(options: ExportOptions, history: list[dict[str, Any]]) -> Path | None:
    """The images to prove it on: those given, else the target images of the run, if they are still there."""
    if options.images:
        return options.images
    for entry in reversed(history):
        target = entry.get("options", {}).get("target")
        if target and Path(target).exists():
            return Path(target)
    return None


def _batches(folder: Path | None, pre: images.Preprocess) -> tuple[list[Array], list[str]]:
    """Up to 256 images spread over the folder, preprocessed, in batches of 32 (n, 3, H, W) float32; their names."""
    if folder is None:
        return [], []
    return files.proof_batches(files.proof_images(folder), PARITY_IMAGES, pre)
