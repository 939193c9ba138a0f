"""A word that names a file or a run folder -> an artefact that is open for inference, without torch where possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeprune import artifact, header, images
from edgeprune.artifact import Artifact, TensorSpec
from edgeprune.errors import DataError, ParityFailed, UsageError
from edgeprune.images import Preprocess
from edgeprune.runtime import metadata
from edgeprune.runtime.runner import Array, Runner

ENGINES = ("tensorrt", "tensorrt-rtx")


def find(word: str, runtime: str = "auto") -> Artifact:
    """The artefact a word stands for: in a run folder the ONNX file, or the checkpoint when torch is asked for."""
    path = Path(word)
    if not path.is_dir():
        return artifact.read(path)
    exported = path / "model.onnx"
    if runtime in ("auto", "ort") and exported.is_file():
        return artifact.read(exported)
    if runtime.startswith("torch"):
        return artifact.read(header.locate(path))
    if runtime in ENGINES:
        return artifact.read(_engine_in(path))
    raise DataError(f"{path}: holds no model.onnx; make it with: edgeprune export {path}")


def _engine_in(folder: Path) -> Path:
    """The one engine of a run folder; DataError when there is none, UsageError when there are several."""
    held = sorted(p for p in folder.iterdir() if artifact.KINDS.get(p.suffix) == "engine")
    if not held:
        raise DataError(f"{folder}: holds no engine; build one: edgeprune export {folder} --to tensorrt")
    if len(held) > 1:
        raise UsageError(f"{folder}: holds {', '.join(p.name for p in held)}; name one")
    return held[0]


def open_runner(word: str, runtime: str, threads: int, trust: Iterable[str]) -> tuple[Artifact, Runner]:
    """The artefact and its open runner; UsageError when the runtime does not take such a file."""
    found = find(word, runtime)
    if runtime == "auto":
        runtime = {"checkpoint": "torch", "engine": "engine"}.get(found.kind, "ort")
    if runtime == "ort" and found.kind == "onnx":
        from edgeprune.runtime import ort

        return found, ort.open(found, threads=threads)
    if found.kind == "engine" and runtime in ("engine", *ENGINES):
        from edgeprune.runtime import tensorrt

        return found, tensorrt.open(found, runtime="auto" if runtime == "engine" else runtime)
    if runtime == "torch" and found.kind == "checkpoint":
        return found, _open_torch(found, threads, trust)
    raise UsageError(f"--runtime {runtime} does not run {found.path} (a file of kind {found.kind})")


def _open_torch(found: Artifact, threads: int, trust: Iterable[str]) -> Runner:
    from edgeprune import checkpoint
    from edgeprune.runtime import torch as torch_runtime

    network = checkpoint.read(found.path, trust)
    shape = ("batch", 3, *network.preprocess.size)
    inputs = [TensorSpec("images", shape)]
    outputs = [TensorSpec("logits", ("batch", len(network.classes)))]
    return torch_runtime.open(network.module, inputs, outputs, threads=threads)


def _facts(found: Artifact) -> dict[str, object]:
    if found.kind == "checkpoint":
        return dict(header.read(found.path).document)
    if found.meta:
        return dict(found.meta)
    if found.kind == "onnx":
        import onnx

        model = onnx.load(found.path, load_external_data=False)
        return metadata.from_props({p.key: p.value for p in model.metadata_props})
    return {}


def preprocess(found: Artifact) -> Preprocess:
    """How images enter the artefact; DataError when nothing says so."""
    facts = _facts(found).get("preprocess")
    if not isinstance(facts, dict):
        raise DataError(
            f"{found.path}: nothing says how its images are prepared; say it once, in a copy: "
            f"edgeprune export {found.path.name} --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
        )
    return Preprocess.from_json(facts)


def classes(found: Artifact) -> tuple[str, ...]:
    """The class names of the artefact; DataError when nothing says them."""
    names = _facts(found).get("classes")
    if not isinstance(names, list):
        raise DataError(
            f"{found.path}: nothing says its class names; edgeprune export takes them with --classes FILE"
        )
    return tuple(str(n) for n in names)


def proof_images(folder: Path) -> list[images.ImageRef]:
    """The images to prove and calibrate on; ParityFailed when there are none, since nothing can be proved then."""
    try:
        return images.find(folder)
    except DataError as err:
        raise ParityFailed(f"{err}; nothing can be proved or calibrated without images") from err


def proof_batches(
    refs: Sequence[images.ImageRef], most: int, pre: Preprocess
) -> tuple[list[Array], list[str]]:
    """Up to `most` of `refs`, evenly spread, in batches of 32 as `pre` says, and their names; errors as above."""
    total = min(most, len(refs))
    chosen = [refs[i * len(refs) // total] for i in range(total)]
    try:
        found = list(images.batches(chosen, pre, 32))
    except DataError as err:
        raise ParityFailed(f"{err}; nothing can be proved or calibrated without images") from err
    return [batch for batch, _ in found], [ref.name for _, kept in found for ref in kept]


def short_name(path: Path) -> str:
    """A name for tables: "runs/slim/model.onnx" -> "slim/model.onnx"."""
    return "/".join(path.resolve().parts[-2:])
