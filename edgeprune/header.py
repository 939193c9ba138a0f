"""What a checkpoint says of itself, read without torch and without touching a single weight.

A checkpoint is one safetensors file: tensors, and one JSON document under one metadata key. Widths are the tensors'
own shapes, so the document cannot disagree with the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from edgeprune.artifact import KINDS
from edgeprune.errors import CheckpointError, DataError

KEY = "edgeprune"
FORMAT = 1
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Header:
    """The JSON document of a checkpoint, and the shape and type of each tensor ("F32", "I64", ...)."""

    path: Path
    document: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]


def locate(path: Path) -> Path:
    """The checkpoint file of a run folder, or the file itself; DataError when there is none."""
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        what = "the run holds no model.safetensors (did it finish?)" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}; expected a run folder or a .safetensors checkpoint")
    return file


def read(path: Path) -> Header:
    """Read the header of the checkpoint at `path` (a file or a run folder).

    CheckpointError when the file is a pickle, truncated, without our document, or of a newer format.
    """
    file = locate(path)
    try:
        with safe_open(file, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
            shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
            dtypes = {name: str(s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as err:
        raise CheckpointError(
            f"{file}: {_what_it_is(file)} ({err}); expected a checkpoint of edgeprune"
        ) from err
    if KEY not in metadata:
        raise CheckpointError(
            f"{file}: plain weights without a model; give the model's name and these as --weights {file}"
        )
    return Header(file, _document(file, metadata[KEY]), shapes, dtypes)


def dense_shapes(head: Header) -> dict[str, tuple[int, ...]]:
    """Shapes of the dense network, with as many classes as there are now: a head that was replaced is no cut."""
    dense = {name: tuple(shape) for name, shape in head.document.get("dense", {}).items()}
    layer = head.document.get("classifier")
    for name in (f"{layer}.weight", f"{layer}.bias") if layer else ():
        if dense.get(name) and head.shapes.get(name):
            dense[name] = (head.shapes[name][0], *dense[name][1:])
    return dense


def parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers are learned: all but the buffers of the norms."""
    return sum(math.prod(shape) for name, shape in shapes.items() if name.rpartition(".")[2] not in BUFFERS)


def _document(file: Path, text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
        version = document["format"]
    except (ValueError, TypeError, KeyError) as err:
        raise CheckpointError(
            f"{file}: its JSON document cannot be read ({err!r}); the file is damaged"
        ) from err
    if version != FORMAT:
        raise CheckpointError(
            f"{file}: format {version}, this edgeprune reads {FORMAT}; use the edgeprune that wrote it"
        )
    return dict(document)


def is_checkpoint(file: Path) -> bool:
    """Whether a file is a checkpoint of ours, rather than plain weights."""
    try:
        read(file)
    except (CheckpointError, DataError):
        return False
    return True


def _what_it_is(file: Path) -> str:
    if KINDS.get(file.suffix.lower()) in ("onnx", "engine"):
        return f"a file ending in {file.suffix}, where a run folder or a .safetensors checkpoint is wanted"
    with file.open("rb") as handle:
        start = handle.read(8)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "a pickle, which can run code when it is opened: not read"
    declared = int.from_bytes(start, "little") if len(start) == 8 else 0
    if 0 < declared < 1 << 27:
        return "a truncated or damaged safetensors file"
    return "not a safetensors file"
