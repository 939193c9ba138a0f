"""Latency of a network's layer shapes over grids of widths, as measured on a device: plain JSON, no torch.

What it must satisfy: the workstation writes the shapes, the device fills in the times, the planner reads
them; none of the three needs the others' libraries. The file:

    {"format": "edgeprune-layer-table", "version": 2,
     "device": "Jetson Orin Nano", "runtime": "tensorrt 10.3", "precision": "fp16", "batch": 1,
     "threads": 1,
     "fixed_ms": 0.05,                  what a whole run costs beside its layers (launch, copies)
     "network": {"macs": 300774272, "p50_ms": 4.2, "spec": "timm:..."},     the dense network itself, or null
     "layers": [{"shape": {"op": "Conv", "kernel": [3, 3], "stride": [2, 2], "padding": [1, 1],
                           "dilation": [1, 1], "groups": 1, "size": [56, 56]},
                 "inputs": [8, 16, 32], "outputs": [8, 64],
                 "p50_ms": [[0.1, 0.2], [0.1, 0.3], [0.2, 0.4]]}]}

`p50_ms[i][j]` is the median time at `inputs[i]` input and `outputs[j]` output channels. Where whole groups of a
convolution go, `groups` is 0, `group` the input and output channels of each ([1, 1]: depthwise), and the grid has one
row. `size` is the input's spatial size for Conv, and
the number of rows for MatMul. Where the dense network itself was measured, what it takes beyond the sum of its
layers (activations, norms, residual sums) is known too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError

FORMAT = "edgeprune-layer-table"
VERSION = 2


@dataclass(frozen=True)
class LayerShape:
    """All of a layer that pruning does not change; op is "Conv", "ConvTranspose" or "MatMul".

    groups: how many, where pruning shortens each; 0 where whole ones go, and `group` has the input and output channels
    of each.
    """

    op: str
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    group: tuple[int, ...] = ()

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LayerShape:
        """Read the "shape" of one entry; KeyError, TypeError or ValueError when it is none."""
        lists = {
            k: tuple(int(v) for v in data.get(k, ()))
            for k in ("kernel", "stride", "padding", "dilation", "group")
        }
        return LayerShape(
            str(data["op"]), tuple(int(v) for v in data["size"]), groups=int(data.get("groups", 1)), **lists
        )


@dataclass(frozen=True)
class Layer:
    """One shape measured over a grid: `p50_ms[i][j]` at `inputs[i]` and `outputs[j]` channels, both
    increasing.
    """

    shape: LayerShape
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    p50_ms: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows, columns = len(self.inputs), len(self.outputs)
        if not rows or not columns or len(self.p50_ms) != rows or any(len(r) != columns for r in self.p50_ms):
            raise DataError(f"{self.shape.op} {self.shape.size}: expected a {rows} x {columns} grid of times")
        for widths in (self.inputs, self.outputs):
            if list(widths) != sorted(set(widths)):
                raise DataError(f"{self.shape.op} {self.shape.size}: widths must increase; received {widths}")

    def at(self, inputs: Any, outputs: Any) -> Any:
        """Milliseconds at any widths, numbers or arrays of one shape: bilinear between grid points, the nearest
        edge outside the grid.
        """
        grid = np.asarray(self.p50_ms, dtype=float)
        (i, u), (j, v) = _place(self.inputs, inputs), _place(self.outputs, outputs)
        below, right = np.minimum(i + 1, len(self.inputs) - 1), np.minimum(j + 1, len(self.outputs) - 1)
        low = (1 - v) * grid[i, j] + v * grid[i, right]
        high = (1 - v) * grid[below, j] + v * grid[below, right]
        return (1 - u) * low + u * high


def _place(grid: tuple[int, ...], width: Any) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The grid point at or below each width, and how far it is to the next one, in 0..1."""
    points, at = np.asarray(grid, dtype=float), np.asarray(width, dtype=float)
    if len(grid) == 1:
        return np.zeros(at.shape, dtype=np.intp), np.zeros(at.shape)
    i = np.clip(np.searchsorted(points, at, side="right") - 1, 0, len(grid) - 2)
    return i, np.clip((at - points[i]) / (points[i + 1] - points[i]), 0.0, 1.0)


@dataclass(frozen=True)
class LayerTable:
    """What one device needs for each layer shape of a network.

    network: {"macs", "p50_ms", "spec"} of the dense network measured beside its layers, or empty.
    """

    device: str
    runtime: str
    precision: str
    layers: tuple[Layer, ...]
    batch: int = 1
    fixed_ms: float = 0.0
    threads: int = 1
    network: Mapping[str, Any] = field(default_factory=dict)

    def find(self, *shapes: LayerShape) -> Layer:
        """The grid of the first of some equal shapes; DataError names it when the table has none of them."""
        known = {layer.shape: layer for layer in self.layers}
        for shape in shapes:
            if shape in known:
                return known[shape]
        shape = shapes[0]
        groups = f"groups of {list(shape.group)}" if shape.group else f"groups {shape.groups}"
        raise DataError(
            f"the layer table of {self.device} has no {shape.op} with kernel {list(shape.kernel)}, stride "
            f"{list(shape.stride)}, {groups} at size {list(shape.size)}; "
            "write the layers of this network with `edgeprune export --layers` and measure them again"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as drawn at the top of this file."""
        return {"format": FORMAT, "version": VERSION, **json.loads(json.dumps(asdict(self)))}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LayerTable:
        """Read what `to_json` wrote; DataError says what is wrong."""
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise DataError(
                f"expected format {FORMAT!r} version {VERSION}; received {data.get('format')!r} "
                f"version {data.get('version')!r}; measure it with `edgeprune bench DIR --layer-table FILE`"
            )
        try:
            layers = tuple(
                Layer(
                    LayerShape.from_json(entry["shape"]),
                    tuple(int(w) for w in entry["inputs"]),
                    tuple(int(w) for w in entry["outputs"]),
                    tuple(tuple(float(t) for t in row) for row in entry["p50_ms"]),
                )
                for entry in data["layers"]
            )
            words = (str(data["device"]), str(data["runtime"]), str(data["precision"]))
            numbers = (int(data.get("batch", 1)), float(data.get("fixed_ms", 0)), int(data.get("threads", 1)))
            return LayerTable(*words, layers, *numbers, dict(data.get("network") or {}))
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(
                f"not a layer table: {err!r}; expected device, runtime, precision, layers"
            ) from err

    @staticmethod
    def read(path: Path) -> LayerTable:
        """Read a table from a file; DataError names the file."""
        try:
            return LayerTable.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as err:
            raise DataError(f"{path}: cannot be read as a layer table: {err}") from err
        except DataError as err:
            raise DataError(f"{path}: {err}") from err
