"""What a page needs to know of a run folder; read without torch, and nothing is required save the folder.

A part that is not there is empty: a run may be unfinished, not exported, or never measured.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune import header, records
from edgeprune.errors import CheckpointError, DataError, RunError

BENCH_SCHEMA = "edgeprune.bench/"
HISTORY = "bench.jsonl"
PRECISIONS = ("fp32", "fp16", "int8")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Width:
    """Output channels of a layer, in the dense network and now."""

    layer: str
    dense: int
    now: int


@dataclass(frozen=True)
class Exported:
    """A file that export wrote into the run folder, and its sidecar's meta."""

    file: str
    bytes: int | None
    meta: Json

    @property
    def precision(self) -> str:
        """fp32, fp16 or int8."""
        return str(self.meta.get("precision", "fp32"))


@dataclass(frozen=True)
class Facts:
    """One run. results: of its command; bench: rows of edgeprune bench, oldest first; export: of model.onnx."""

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
    exports: tuple[Exported, ...] = ()
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
        exports=tuple(_exports(path)),
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
    dense = header.dense_shapes(head)
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
        "params": header.parameters(head.shapes),
        "dense_params": header.parameters(dense) or None,
        "bytes": head.path.stat().st_size,
    }


def _exports(path: Path) -> Iterator[Exported]:
    """Every ONNX file and engine with a sidecar: the plain ones before those with ends, engines last."""
    found = []
    for side in (*path.glob("*.onnx.json"), *path.glob("*.engine.json")):
        file, meta = side.with_suffix(""), _json(side).get("meta")
        if isinstance(meta, Mapping):
            found.append(Exported(file.name, file.stat().st_size if file.is_file() else None, meta))
    order = {word: i for i, word in enumerate(PRECISIONS)}
    yield from sorted(
        found,
        key=lambda e: (
            e.file.endswith(".engine"),
            bool(e.meta.get("ends")),
            order.get(e.precision, 9),
            e.file,
        ),
    )


def _bench(path: Path) -> Iterator[Json]:
    """Rows of the folder's history and of every JSON file in it that edgeprune bench wrote, each once, oldest first."""
    told: list[Any] = _lines(path / HISTORY)
    for file in sorted(path.glob("*.json")):
        data = _any_json(file)
        rows = data.get("results", [data]) if isinstance(data, Mapping) else data
        told += rows if isinstance(rows, list) else []
    found = [r for r in told if isinstance(r, Mapping) and str(r.get("schema", "")).startswith(BENCH_SCHEMA)]
    once = {row_identity(row): row for row in found}
    yield from sorted(once.values(), key=lambda row: str(row.get("created") or ""))


def row_identity(row: Json) -> str:
    """The same text for the same measurement, whichever file it was read from."""
    parts = [row.get(key) for key in ("model", "config", "created", "latency_ms")]
    return json.dumps(parts, sort_keys=True)


def _lines(file: Path) -> list[Any]:
    """The whole lines of a history; one that is torn or no JSON is left out."""
    try:
        text = file.read_text("utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _any_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _json(file: Path) -> dict[str, Any]:
    data = _any_json(file)
    return data if isinstance(data, dict) else {}
