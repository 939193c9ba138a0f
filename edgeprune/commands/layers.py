"""Layer tables: `export --layers` writes a network's layers at many widths, `bench --layer-table` measures them.

The first needs torch and the network; the second needs the folder and a runtime, on the device, without torch.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import artifact
from edgeprune.bench import layer_graphs, layers
from edgeprune.bench.table import LayerTable
from edgeprune.device_options import BenchOptions, ExportOptions
from edgeprune.errors import OutputExists, UsageError

if TYPE_CHECKING:
    from edgeprune.model import Network


@dataclass(frozen=True)
class LayersResult:
    """What `export --layers` wrote: distinct shapes, and one graph for each of their widths."""

    folder: Path
    shapes: int
    graphs: int
    next: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"folder": str(self.folder), "shapes": self.shapes, "graphs": self.graphs}


@dataclass(frozen=True)
class TableResult:
    """What `bench --layer-table` wrote, and what the dense network took beside its layers."""

    table: Path
    device: str
    runtime: str
    shapes: int
    network_ms: float | None
    layers: tuple[dict[str, Any], ...]
    next: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        facts: dict[str, Any] = {"table": str(self.table), "device": self.device, "runtime": self.runtime}
        facts |= {"layer_shapes": self.shapes, "network_ms": self.network_ms}
        return {**facts, "layers": list(self.layers), "next": self.next}


def export_layers(options: ExportOptions) -> LayersResult:
    """Write the layer graphs of a checkpoint's network into the folder of `-o`. Errors: any EdgePruneError."""
    from edgeprune import checkpoint, header
    from edgeprune.commands import start

    if options.output is None or options.output.suffix == ".onnx":
        raise UsageError("--layers writes a folder of small graphs: say where with -o DIR")
    if options.output.is_file():
        raise OutputExists(f"{options.output}: is a file; --layers writes a folder")
    if options.output.exists() and any(options.output.iterdir()):
        if not (options.output / layer_graphs.MANIFEST).is_file():
            raise OutputExists(f"{options.output}: holds other files; choose an empty folder with -o")
        if not options.force:
            raise OutputExists(f"{options.output} exists; --force replaces it")
    network = checkpoint.read(header.locate(Path(options.model)), options.trust)
    shapes, graphs = write(options.output, network)
    more = start.words("edgeprune", "bench", options.output, "--layer-table", "table.json")
    return LayersResult(options.output, shapes, graphs, more)


def write(folder: Path, network: Network) -> tuple[int, int]:
    """The layer graphs of a network and the network itself; returns distinct shapes and graphs."""
    from edgeprune.commands import stopwatch
    from edgeprune.prune import graph, latency, macs

    example = network.example()
    found = graph.find(network.module, example, verify=False)
    costs = macs.trace(network.module, example, found)
    grids = latency.grids(costs)
    folder.mkdir(parents=True, exist_ok=True)
    stopwatch.quick_export(network.module, example, folder / layer_graphs.NETWORK)
    facts = {"spec": network.spec, "macs": int(costs.macs(costs.full))}
    return len(grids), layer_graphs.write(folder, grids, facts)


def bench_layers(options: BenchOptions, path: Path) -> TableResult:
    """Measure the folder that `export --layers` wrote and write the table to `path`. Errors: any EdgePruneError."""
    if len(options.artifacts) != 1:
        raise UsageError("--layer-table measures one folder, the one that `edgeprune export --layers` wrote")
    if options.runtime not in ("auto", "ort"):
        raise UsageError(f"--runtime {options.runtime}: layers are measured with ort so far")
    if path.exists() and not options.force:
        raise OutputExists(f"{path} exists; --force replaces it")
    table = layers.tabulate(Path(options.artifacts[0]), _threads(options.threads))
    save(table, path)
    rows = tuple(
        {
            "layer": f"{one.shape.op} {'x'.join(map(str, one.shape.kernel))}".strip(),
            "size": "x".join(map(str, one.shape.size)),
            "widest": f"{one.inputs[-1]} -> {one.outputs[-1]}",
            "slowest_ms": one.p50_ms[-1][-1],
        }
        for one in table.layers
    )
    more = f"edgeprune prune RUN --target DIR --latency 0.7x --table {path}"
    whole = table.network.get("p50_ms")
    return TableResult(path, table.device, table.runtime, len(rows), whole, rows, more)


def _threads(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"--threads {text}: a layer table is of one number of threads")
    return int(text)


def save(table: LayerTable, path: Path) -> None:
    """Write a table, atomically."""
    artifact.write_atomically(path, json.dumps(table.to_json(), indent=1).encode())


def measured_here(network: Network, threads: int = 1) -> LayerTable:
    """The layer table of a network on this machine, made on the spot."""
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch), network)
        return layers.tabulate(Path(scratch), threads)
