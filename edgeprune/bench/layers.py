"""Measures the small graphs of `edgeprune.bench.layer_graphs` on this device: the layer table. No torch.

ONNX Runtime wraps a lone convolution in two changes of layout that a network makes once for many layers, and
they may take as long as the layer (measured: 113 of 226 microseconds). So its own profiler is asked what the
layer itself took; what a whole network takes beyond its layers comes from measuring the network.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import progress
from edgeprune.bench import inputs as feeding
from edgeprune.bench import layer_graphs, machine, undisturbed
from edgeprune.bench.table import Layer, LayerTable
from edgeprune.errors import DataError, missing_package
from edgeprune.runtime import ort

LAYER_S, FEWEST, MOST = 0.02, 7, 40  # of one graph: seconds, and runs at least and at most
NETWORK_S = 1.0
_LAYOUT = ("ReorderInput", "ReorderOutput")


def tabulate(folder: Path, threads: int = 1) -> LayerTable:
    """The layer table of this device for the folder that `layer_graphs.write` made, with ONNX Runtime.

    MissingHere without ONNX Runtime; DataError for another folder.
    """
    grids, network = layer_graphs.read(folder)
    total = sum(len(g.inputs) * len(g.outputs) for g in grids)
    layers = []
    with progress.bar("layers", total=total) as tick, tempfile.TemporaryDirectory() as scratch:
        for index, grid in enumerate(grids):
            rows = []
            for i in grid.inputs:
                row = []
                for o in grid.outputs:
                    row.append(layer_ms(layer_graphs.place(folder, index, i, o), threads, Path(scratch)))
                    tick(1)
                rows.append(tuple(row))
            layers.append(Layer(grid.shape, grid.inputs, grid.outputs, tuple(rows)))
    whole = network_ms(folder / layer_graphs.NETWORK, threads)
    facts = {**network, "p50_ms": whole} if whole is not None else {}
    return LayerTable(device(), runtime(), "fp32", tuple(layers), 1, 0.0, threads, facts)


def device() -> str:
    """What this machine is called in a table: the board, else its processor."""
    facts = machine.describe()
    return str(facts["board"] or facts["cpu"].get("name") or facts["arch"])


def runtime() -> str:
    """The runtime and its version, as a table records them."""
    return f"onnxruntime {_library().__version__}"


def here(table: LayerTable) -> bool:
    """Whether a table was measured with the runtime of this machine, on such a machine."""
    try:
        return table.device == device() and table.runtime == runtime()
    except ModuleNotFoundError:
        return False


def layer_ms(path: Path, threads: int, scratch: Path) -> float:
    """Median milliseconds of the layer in a file, changes of layout left out."""
    library = _library()
    options = ort._options(library, threads, ort.CPU, False)
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    session = library.InferenceSession(str(path), options, providers=[ort.CPU])
    value = session.get_inputs()[0]
    feeds = {value.name: np.random.default_rng(0).standard_normal(value.shape).astype(np.float32)}
    quiet: list[bool] = []
    start = time.perf_counter()
    while sum(quiet[2:]) < FEWEST or time.perf_counter() - start < LAYER_S:
        if len(quiet) == MOST:
            break
        began = undisturbed.now()
        session.run(None, feeds)
        quiet.append(undisturbed.quiet(began, threads))
    profile = Path(session.end_profiling())
    took = _of_profile(json.loads(profile.read_text()))
    profile.unlink()
    if len(took) != len(quiet):
        raise DataError(f"{path}: the profile has {len(took)} runs of the layer, {len(quiet)} were made")
    kept = [t for t, q in zip(took[2:], quiet[2:], strict=True) if q]  # the first runs fill caches
    return float(np.median(kept or took)) * 1e-3


def _of_profile(events: list[Mapping[str, Any]]) -> list[float]:
    """Microseconds of each run: all nodes but changes of layout, added up."""
    by_node: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name, operator = str(event.get("name", "")), event.get("args", {}).get("op_name")
        if event.get("cat") == "Node" and name.endswith("_kernel_time") and operator not in _LAYOUT:
            by_node[name].append(float(event["dur"]))
    return [sum(parts) for parts in zip(*by_node.values(), strict=False)]


def network_ms(path: Path, threads: int) -> float | None:
    """Median milliseconds of a whole network, None when there is no such file."""
    if not path.is_file():
        return None
    with ort.open(path, threads=threads) as runner:
        feeds = {"it": feeding.synthetic(runner.inputs)}
        found, _ = undisturbed.measure({"it": runner}, feeds, seconds=NETWORK_S, threads=threads)
    return float(np.median(found["it"].latency_s)) * 1e3


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as err:
        raise missing_package("onnxruntime", "cpu", "measuring layers") from err
    return onnxruntime
