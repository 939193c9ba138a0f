"""`edgeprune inspect`: what a checkpoint, an ONNX file or an engine is, layer by layer, old -> new width. Torch-free.

Only `--prunable` and `--sensitivity` need torch: the first tries every coupling of a network and says which can be cut,
and why not the rest; the second says how far the answers move when one alone is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeprune import artifact, count, header, records
from edgeprune.artifact import Artifact
from edgeprune.commands import files
from edgeprune.device_options import InspectOptions
from edgeprune.errors import BrokenModel, DataError, UsageError
from edgeprune.runtime import engines


@dataclass(frozen=True)
class LayerFacts:
    """One layer: its shape now, and the shape in the dense network where that is another one."""

    name: str
    shape: tuple[int, ...]
    dense: tuple[int, ...] | None = None
    macs: int | None = None


@dataclass(frozen=True)
class InspectResult:
    """What the file says of itself. `couplings` is filled by --prunable alone, `sensitivity` by --sensitivity."""

    file: Path | str
    kind: str
    facts: Mapping[str, Any]
    layers: tuple[LayerFacts, ...] = ()
    couplings: tuple[Mapping[str, Any], ...] = ()
    history: tuple[Mapping[str, Any], ...] = field(default=())
    sensitivity: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "file": str(self.file),
            "kind": self.kind,
            **self.facts,
            "layers": [asdict(layer) for layer in self.layers],
            "couplings": [dict(c) for c in self.couplings],
            "history": [dict(h) for h in self.history],
            "sensitivity": [dict(s) for s in self.sensitivity],
        }


def inspect(options: InspectOptions) -> InspectResult:
    """Describe a file or a run folder, or with `prunable` a network. Errors: any EdgePruneError."""
    if not options.file:
        raise UsageError("nothing to inspect: give a run folder, a checkpoint, an ONNX file or an engine")
    if options.prunable:
        from edgeprune.commands import prunable

        facts, couplings = prunable.rows(options)
        return InspectResult(options.file, "network", facts, couplings=couplings)
    if options.sensitivity:
        from edgeprune.commands import sensitivity

        spec, rows = sensitivity.rows(options)
        drawn = {"plot": str(options.plot)} if options.plot else {}
        return InspectResult(options.file, "network", {"model": spec, **drawn}, sensitivity=rows)
    path = Path(options.file)
    if path.is_dir() or path.suffix == ".safetensors":
        return _checkpoint(path)
    found = artifact.read(path)
    return _engine(found) if found.kind == "engine" else _onnx(path)


def _engine(found: Artifact) -> InspectResult:
    """What the sidecar says of an engine; the plan itself is for the library that built it alone."""
    built = dict(engines.built_by(found))
    facts: dict[str, Any] = {
        "bytes": found.path.stat().st_size,
        "sha256": found.sha256,
        "inputs": [asdict(t) for t in found.inputs],
        "outputs": [asdict(t) for t in found.outputs],
    }
    if not artifact.sidecar(found.path).is_file():
        note = f"no {found.path.name}.json beside it, so nothing says what it was built from, for and by"
        return InspectResult(found.path, "engine", {**facts, "note": note})
    told = {key: found.meta[key] for key in _OF_AN_ENGINE if found.meta.get(key) is not None}
    changed = "the file is not the one that its sidecar was written for" if _changed(found) else None
    return InspectResult(
        found.path,
        "engine",
        {
            **facts,
            "device": found.device or "not recorded",
            **told,
            "classes": list(found.meta.get("classes", ())),
            "parents": list(found.parents),
            **({"note": changed} if changed else {}),
            "engine": built,
        },
    )


_OF_AN_ENGINE = ("precision", "macs", "params", "preprocess", "opset", "tool_version")


def _changed(found: Artifact) -> bool:
    """Whether the sidecar was written for other bytes."""
    side = records.read_json(artifact.sidecar(found.path)) or {}
    return bool(side.get("sha256")) and side["sha256"] != found.sha256


def _checkpoint(path: Path) -> InspectResult:
    head = header.read(path)
    document = head.document
    dense = header.dense_shapes(head)
    layers = tuple(
        LayerFacts(name.removesuffix(".weight"), shape, dense.get(name) if dense.get(name) != shape else None)
        for name, shape in head.shapes.items()
        if name.endswith(".weight") and len(shape) > 1
    )
    facts = {
        "model": document["spec"],
        "classes": list(document["classes"]),
        "preprocess": document["preprocess"],
        "parameters": header.parameters(head.shapes),
        "dense_parameters": header.parameters(dense),
        "bytes": head.path.stat().st_size,
        "sha256": artifact.sha256(head.path),
        "libraries": document["libraries"],
    }
    history = tuple(_short(entry) for entry in document["history"])
    return InspectResult(head.path, "checkpoint", facts, layers, history=history)


def _short(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("command", "finished", "method", "objective") if key in entry}


def _onnx(path: Path) -> InspectResult:
    found = artifact.read(path)
    try:
        counted = count.count(path)
    except DataError as err:
        raise BrokenModel(str(err)) from err
    facts = {
        "macs": counted.macs,
        "parameters": counted.params,
        "bytes": path.stat().st_size,
        "sha256": found.sha256,
        "inputs": [asdict(t) for t in found.inputs],
        "outputs": [asdict(t) for t in found.outputs],
        "parents": list(found.parents),
        "classes": list(files.classes(found)) if found.meta else [],
    }
    layers = tuple(
        LayerFacts(layer.name, layer.weight_shape or (), None, layer.macs) for layer in counted.layers
    )
    return InspectResult(path, "onnx", facts, layers)
