"""`edgeprune export`: a checkpoint -> ONNX beside it, proved equal on the user's own images before it gets its name."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune import artifact, checkpoint, header, images
from edgeprune.commands import start
from edgeprune.commands.bench import accuracy
from edgeprune.errors import OutputExists, UsageError
from edgeprune.export import onnx as onnx_export
from edgeprune.export import parity as parities
from edgeprune.export import profile
from edgeprune.export.parity import FP32, Array
from edgeprune.options import ExportOptions
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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "file": str(self.file) if self.file else None}


def export(options: ExportOptions) -> ExportResult:
    """Write `model.onnx` into the run folder, or into `output`. ParityFailed keeps the file as model.failed.onnx."""
    unknown = set(options.to) - {"onnx"}
    if unknown:
        raise UsageError(f"--to {sorted(unknown)[0]}: expected onnx; engines are not there yet")
    if options.precision != "fp32":
        raise UsageError(f"--precision {options.precision}: expected fp32; the others are not there yet")
    profile.parse(options.batch)
    start.seed_everything(options)
    source = header.locate(Path(options.model))
    folder = options.output or source.parent
    path = folder / "model.onnx"
    if path.exists() and not options.force:
        raise OutputExists(f"{path} exists; --force replaces it")
    network = checkpoint.read(source, options.trust)
    proof = _proof(options, network.history)
    batches = _batches(proof, network.preprocess)
    count = sum(len(b) for b in batches)
    if options.dry_run:
        return ExportResult(None, None, None, None, None, None, count, None, None)
    tolerance = (
        FP32 if options.max_flip is None else parities.Tolerance("fp32", FP32.relative, options.max_flip)
    )
    made = onnx_export.export(
        network,
        path,
        batch=options.batch,
        opset=options.opset,
        images=batches or None,
        tolerance=tolerance,
        parents=(artifact.sha256(source),),
    )
    right = None
    if options.evaluate:
        with ort.open(made, threads=options.threads) as runner:
            right = accuracy(made, runner, options.evaluate)["accuracy"]
    found = dict(made.meta["parity"])
    found.pop("worst", None)
    return ExportResult(
        path,
        made.meta["macs"],
        made.meta["params"],
        path.stat().st_size,
        made.meta["exporter"],
        found,
        count or 8,
        right,
        f"edgeprune bench {path}",
    )


def _proof(options: ExportOptions, history: list[dict[str, Any]]) -> Path | None:
    """The images to prove it on: those given, else the target images of the run, if they are still there."""
    if options.images:
        return options.images
    for entry in reversed(history):
        target = entry.get("options", {}).get("target")
        if target and Path(target).exists():
            return Path(target)
    return None


def _batches(folder: Path | None, pre: images.Preprocess) -> list[Array]:
    """Up to 256 images spread over the folder, preprocessed, in batches of 32 (n, 3, H, W) float32."""
    if folder is None:
        return []
    refs = images.find(folder)
    step = max(1, math.ceil(len(refs) / PARITY_IMAGES))
    return [batch for batch, _ in images.batches(refs[::step], pre, 32)]
