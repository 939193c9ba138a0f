"""An ONNX file from elsewhere, and what the user says of its images -> a copy that says it itself.

The copy, NAME.described.onnx, holds the facts in its metadata as any file of ours does, so that calibration, parity,
bench and predict read them there. The network in it is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune import __version__, artifact
from edgeprune.artifact import Artifact
from edgeprune.device_options import ExportOptions
from edgeprune.errors import DataError, ModelError, UsageError
from edgeprune.export import graph, reading
from edgeprune.images import Preprocess
from edgeprune.runtime import metadata, ort

WORDS = ("mean", "std", "size", "interpolation", "classes")


def asked(options: ExportOptions) -> bool:
    """Whether the user says how images are prepared; UsageError for words that do not go together."""
    given = [f"--{word}" for word in WORDS if getattr(options, word) is not None]
    if not given:
        return False
    if Path(options.model).suffix.lower() != ".onnx":
        raise UsageError(f"{given[0]} is for an ONNX file from elsewhere; a checkpoint knows its own")
    if options.mean is None or options.std is None:
        raise UsageError(f"{given[0]}: expected both --mean and --std, of pixels in 0..1")
    _numbers(options.mean, "--mean")
    _numbers(options.std, "--std")
    return True


def path_of(options: ExportOptions, folder: Path) -> Path:
    """Where the copy goes."""
    return folder / f"{Path(options.model).stem}.described.onnx"


def write(options: ExportOptions, source: Path, path: Path) -> Artifact:
    """Write `path` and its sidecar: `source` with the user's facts; parents is the sha256 of `source`.

    ModelError when its input is no float32 (n, 3, H, W) or it has facts already; UsageError where a word disagrees
    with the graph.
    """
    model = reading.read(source)
    held = metadata.from_props({p.key: p.value for p in model.metadata_props})
    if "preprocess" in held:
        raise ModelError(f"{source}: says already how its images are prepared; leave --mean and --std out")
    with ort.open(source) as opened:
        inputs, outputs = opened.inputs, opened.outputs
    facts = {
        "precision": "fp32",
        "parents": [artifact.sha256(source)],
        "tool_version": __version__,
        **_facts(options, source, inputs, outputs),
    }
    for key, text in metadata.to_props(facts).items():
        model.metadata_props.add(key=key, value=text)
    with graph.scratch(path) as folder:
        file = folder / "made.onnx"
        graph.save(model, file, path.name)
        graph.move(file, path)
    made = Artifact(
        path, "onnx", artifact.sha256(path), inputs, outputs, (artifact.sha256(source),), "", facts
    )
    made.write_sidecar()
    return made


def preprocess(options: ExportOptions, source: Path) -> Preprocess:
    """How the user says that images enter `source`; errors as of `write`."""
    with ort.open(source) as opened:
        return _preprocess(options, source, opened.inputs)


def _facts(options: ExportOptions, source: Path, inputs: Any, outputs: Any) -> dict[str, Any]:
    pre = _preprocess(options, source, inputs)
    return {"preprocess": pre.to_json(), **_classes(options.classes, outputs)}


def _preprocess(options: ExportOptions, source: Path, inputs: Any) -> Preprocess:
    spec = inputs[0]
    if len(inputs) != 1 or len(spec.shape) != 4 or spec.shape[1] != 3 or spec.dtype != "float32":
        raise ModelError(
            f"{source}: input {spec.name} is {spec.dtype} {list(spec.shape)}; expected one, float32 (n, 3, H, W)"
        )
    size = tuple(side if isinstance(side, int) else options.size for side in spec.shape[2:])
    if None in size:
        raise UsageError(f"{source}: input {spec.name} has a free size {list(spec.shape)}; give --size")
    if options.size is not None and size != (options.size, options.size):
        raise UsageError(f"--size {options.size}: input {spec.name} of {source.name} is {size[0]}x{size[1]}")
    return Preprocess(
        (int(size[0] or 0), int(size[1] or 0)),
        _numbers(options.mean or "", "--mean"),
        _numbers(options.std or "", "--std"),
        options.interpolation or "bilinear",
    )


def _classes(file: Path | None, outputs: Any) -> dict[str, list[str]]:
    if file is None:
        return {}
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"--classes {file}: cannot be read; expected a text file, one name a line") from err
    wide = outputs[0].shape[-1] if outputs[0].shape else None
    if isinstance(wide, int) and wide != len(names):
        raise UsageError(f"--classes {file}: {len(names)} names, and the network answers {wide} classes")
    return {"classes": names}


def _numbers(text: str, word: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 3:
        raise UsageError(f"{word} {text}: expected three numbers, such as 0.485,0.456,0.406")
    if not all((n > 0 if word == "--std" else n >= 0) and n <= 1 for n in found):
        least = "above 0" if word == "--std" else "from 0"
        raise UsageError(f"{word} {text}: expected numbers {least} to 1, of pixels in 0..1 (not in 0..255)")
    return found
