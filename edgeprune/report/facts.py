"""What a page needs to know of a run folder; read without torch, and nothing is required save the folder.

A part that is not there is empty: a run may be unfinished, not exported, or never measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune import header, records
from edgeprune.errors import CheckpointError, DataError, RunError

BENCH_SCHEMA = "edgeprune.bench/"
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Width:
    """Output channels of a layer, in the dense network and now."""

    layer: str
    dense: int
    now: int


@dataclass(frozen=True)
class Facts:
    """One run. results: of its command; bench: rows of edgeprune bench; export: a sidecar's meta."""

    path: Path
    command: str
    model: str
    finished: str
    results: Json = field(default_factory=dict)
    config: Json = field(default_factory=dict)
    metrics: tuple[Json, ...] = ()
    history: tuple[Json, ...] = ()
    spec: str = ""
    widths: tuple[Width, ...] = ()
    params: int | None = None
    dense_params: int | None = None
    bytes: int | None = None
    export: Json = field(default_factory=dict)
    bench: tuple[Json, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name


def read(path: Path) -> Facts:
    """Everything known of the run at `path`; DataError when there is no such folder."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; expected a run folder such as runs/adapt-resnet50-1")
    begun, done = _json(path / "run.json"), _json(path / "done.json")
    sidecar = _json(path / "model.onnx.json")
    return Facts(
        path=path,
        command=str(done.get("command") or begun.get("command") or ""),
        model=str(done.get("model") or begun.get("model") or ""),
        finished=str(done.get("finished", "")),
        results=done.get("results") or {},
        config=_config(path),
        metrics=tuple(records.metrics(path)),
        export=sidecar.get("meta") or {},
        bench=tuple(_bench(path)),
        **_checkpoint(path),
    )


def _config(path: Path) -> Json:
    try:
        return records.saved_config(path)
    except RunError:
        return {}


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        head = header.read(path)
    except (CheckpointError, DataError):
        return {}
    dense = {name: tuple(shape) for name, shape in head.document.get("dense", {}).items()}
    head_layer = head.document.get("classifier")  # a new head is as wide as there are classes: no cut
    widths = tuple(
        Width(name.removesuffix(".weight"), dense[name][0], shape[0])
        for name, shape in head.shapes.items()
        if name.endswith(".weight") and len(shape) > 1 and name in dense and name != f"{head_layer}.weight"
    )
    return {
        "spec": str(head.document.get("spec", "")),
        "history": tuple(head.document.get("history", ())),
        "widths": widths,
        "params": _elements(head.shapes),
        "dense_params": _elements(dense) or None,
        "bytes": head.path.stat().st_size,
    }


def _elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    total = 0
    for name, shape in shapes.items():
        if name.rpartition(".")[2] not in _BUFFERS:
            size = 1
            for side in shape:
                size *= side
            total += size
    return total


def _bench(path: Path) -> Iterator[Json]:
    """Rows of every JSON file in the folder that edgeprune bench wrote."""
    for file in sorted(path.glob("*.json")):
        data = _any_json(file)
        rows = data.get("results", [data]) if isinstance(data, Mapping) else data
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, Mapping) and str(row.get("schema", "")).startswith(BENCH_SCHEMA):
                yield row


def _any_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _json(file: Path) -> dict[str, Any]:
    data = _any_json(file)
    return data if isinstance(data, dict) else {}
