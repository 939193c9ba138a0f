"""An ONNX graph between exporter and disk: cleaned of its maker's machine, simplified, written whole."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

from edgeprune import __version__
from edgeprune.errors import DiskFull, EdgePruneError, MissingHere, missing_package

ONE_FILE = 1_900_000_000  # bytes of weights; protobuf ends at 2 GiB
_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(model: onnx.ModelProto) -> None:
    """Remove notes (stack traces with local paths; layer names stay) and unused opsets, in place."""
    graph = model.graph
    for node in graph.node:
        scopes = [p.value for p in node.metadata_props if p.key == _SCOPES]
        del node.metadata_props[:]
        node.doc_string = ""
        for value in scopes:
            node.metadata_props.add(key=_SCOPES, value=value)
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for holder in (graph, model, *values, *model.functions):
        del holder.metadata_props[:]
        holder.doc_string = ""
    used = {n.domain or "ai.onnx" for n in graph.node} | {f.domain for f in model.functions}
    kept = [o for o in model.opset_import if (o.domain or "ai.onnx") in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.producer_name, model.producer_version = "edgeprune", __version__


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """What onnxslim makes of it; MissingHere without onnxslim."""
    try:
        import onnxslim
    except ImportError as err:
        raise missing_package("onnxslim", "compress", "simplifying a graph") from err
    slim: onnx.ModelProto = onnxslim.slim(model)
    return slim


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove initialisers that nothing reads, in place: passes that give a layer another bias leave the old one."""
    read, waiting = {t.name for t in model.graph.output}, [model.graph]
    while waiting:
        inner = waiting.pop()
        for node in inner.node:
            read.update(node.input)
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else attribute.graphs
    kept = [t for t in model.graph.initializer if t.name in read]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def save(model: onnx.ModelProto, file: Path, final: str) -> None:
    """Write `file` without what nothing reads; weights past protobuf's limit go to `<final>.data` beside it."""
    _drop_unread(model)
    big = sum(len(t.raw_data) for t in model.graph.initializer) > ONE_FILE
    file.unlink(missing_ok=True)
    try:
        onnx.save_model(model, file, save_as_external_data=big, location=f"{final}.data")
    except OSError as err:
        raise _not_written(file, err) from err


def move(file: Path, path: Path) -> None:
    """Weights first, then the graph that needs them, so that a graph is never there without its weights."""
    try:
        for data in file.parent.glob("*.data"):
            os.replace(data, path.with_name(data.name))
        os.replace(file, path)
    except OSError as err:
        raise _not_written(path, err) from err


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A folder on the disk of `path`, so that what is finished can be renamed into its place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent)
    except OSError as err:
        raise _not_written(path, err) from err
    with folder as name:
        yield Path(name)


def _not_written(path: Path, err: OSError) -> EdgePruneError:
    if err.errno == errno.ENOSPC:
        return DiskFull(f"{path}: no space is left on the device; what was there before is intact")
    return MissingHere(f"{path}: cannot be written ({err.strerror}); give another --output")
