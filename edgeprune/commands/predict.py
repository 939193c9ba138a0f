"""`edgeprune predict`: an artefact and images -> the class of each image, with its confidence. Torch-free for ONNX."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune import artifact, images
from edgeprune.commands import files, outputs
from edgeprune.device_options import PredictOptions
from edgeprune.errors import UsageError
from edgeprune.runtime import answers


@dataclass(frozen=True)
class Prediction:
    """One of the answers for an image: rank 1 is the most likely; confidence is its softmax share, in 0..1."""

    image: str
    rank: int
    name: str
    confidence: float


@dataclass(frozen=True)
class PredictResult:
    """All answers, and the images that could not be read."""

    predictions: tuple[Prediction, ...]
    skipped: tuple[str, ...]
    csv: Path | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "predictions": [asdict(p) for p in self.predictions],
            "skipped": list(self.skipped),
            "csv": str(self.csv) if self.csv else None,
        }


def predict(options: PredictOptions) -> PredictResult:
    """Name the `top` likeliest classes of each image, in the order of the file names."""
    if options.images is None:
        raise UsageError("--images is missing: the folder or zip of images to name")
    if not options.artifact:
        raise UsageError(
            "nothing to run: ARTIFACT is missing; give an ONNX file, a run folder or a checkpoint"
        )
    outputs.require([options.csv], options.force)
    refs = images.find(options.images)
    found, runner = files.open_runner(options.artifact, "auto", options.threads, options.trust)
    names = files.classes(found)
    if not 1 <= options.top <= len(names):
        raise UsageError(f"--top {options.top}: expected 1 to {len(names)}, the number of classes")
    predictions: list[Prediction] = []
    skipped: list[str] = []
    with runner:
        for batch, kept in images.batches(refs, files.preprocess(found), 32, skipped):
            found_classes, shares = answers.ranked(runner, batch, options.top)
            if found_classes.shape[1] < options.top:
                most = found_classes.shape[1]
                raise UsageError(f"--top {options.top}: {options.artifact} was exported with --top-k {most}")
            for row, share, ref in zip(found_classes, shares, kept, strict=True):
                predictions.extend(
                    Prediction(ref.name, rank, names[int(k)], float(s))
                    for rank, (k, s) in enumerate(zip(row, share, strict=True), 1)
                )
    result = PredictResult(tuple(predictions), tuple(skipped), options.csv)
    if options.csv:
        artifact.write_atomically(options.csv, _csv(result.predictions).encode())
    return result


def _csv(predictions: tuple[Prediction, ...]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["image", "rank", "name", "confidence"])
    writer.writeheader()
    writer.writerows({**asdict(p), "confidence": f"{p.confidence:.6f}"} for p in predictions)
    return out.getvalue()
