"""A file that EdgePrune made, and what is known of it: kind, tensors, sha256, parents; a JSON sidecar beside it.

Standard library only: it is read on the device, before any runtime is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.errors import DataError

KINDS: Mapping[str, str] = {
    ".safetensors": "checkpoint",
    ".onnx": "onnx",
    ".engine": "engine",
    ".plan": "engine",
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, shape (a str is a free dimension, such as "batch") and numpy dtype name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Artifact:
    """A file on disk and the facts that go with it; `meta` holds JSON values only (classes, size, mean, std ...)."""

    path: Path
    kind: str
    sha256: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parents: tuple[str, ...] = ()
    device: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def write_sidecar(self) -> Path:
        """Write `<path>.json` beside the file, atomically, and return where."""
        data = {**asdict(self), "path": self.path.name}
        target = sidecar(self.path)
        write_atomically(target, json.dumps(data, indent=2, sort_keys=True).encode())
        return target


def sidecar(path: Path) -> Path:
    """Where the facts of a file lie: "model.onnx" -> "model.onnx.json"."""
    return path.with_name(path.name + ".json")


def read(path: Path) -> Artifact:
    """The artefact at `path`, with its sidecar's facts if there is one; DataError for a file or kind not known."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a checkpoint, an ONNX file or an engine")
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{path}: the ending {path.suffix!r} is not known; expected one of {', '.join(KINDS)}"
        )
    side = sidecar(path)
    if not side.is_file():
        return Artifact(path, kind, sha256(path))
    try:
        data = json.loads(side.read_text())
        tensors = {
            key: tuple(TensorSpec(t["name"], tuple(t["shape"]), t["dtype"]) for t in data.get(key, ()))
            for key in ("inputs", "outputs")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataError(f"{side}: not a sidecar of EdgePrune ({err!r}); delete it to go on without") from err
    return Artifact(
        path,
        kind,
        sha256(path),
        tensors["inputs"],
        tensors["outputs"],
        tuple(data.get("parents", ())),
        str(data.get("device", "")),
        data.get("meta", {}),
    )


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _slow(path)
        )


def _slow(path: Path) -> str:
    # Python 3.10 (JetPack 6) has no hashlib.file_digest.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write all of `data` or nothing: readers see the old file or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
