"""Small ONNX graphs of a network's layers at many widths, and the manifest that lists them. No torch.

What it must satisfy: every file is tiny (weights are constants that the runtime expands as it loads, so a
wide layer needs no megabytes on disk); a device needs the folder alone. The folder:

    layers.json      {"format": "edgeprune-layers", "version": 2, "network": {...},
                      "layers": [{"shape": {...}, "inputs": [8, 16], "outputs": [8, 64]}]}
    0-8x64.onnx      layer 0 at 8 input and 64 output channels
    network.onnx     the dense network itself
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from edgeprune import artifact
from edgeprune.bench.table import LayerShape
from edgeprune.errors import DataError

FORMAT = "edgeprune-layers"
VERSION = 2
MANIFEST, NETWORK = "layers.json", "network.onnx"
OPSET, IR = 17, 9  # what ONNX Runtime 1.14 and TensorRT 8.6 read, too


@dataclass(frozen=True)
class Grid:
    """One shape and the widths to measure it at, both increasing; where whole groups go, inputs == (1,)."""

    shape: LayerShape
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def write(folder: Path, grids: Sequence[Grid], network: Mapping[str, Any]) -> int:
    """Write the graphs and the manifest; returns how many graphs. `network`: spec and macs of the dense one."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for index, grid in enumerate(grids):
        for inputs in grid.inputs:
            for outputs in grid.outputs:
                model = graph(grid.shape, inputs, outputs)
                artifact.write_atomically(place(folder, index, inputs, outputs), model.SerializeToString())
                count += 1
    document = {
        "format": FORMAT,
        "version": VERSION,
        "network": dict(network),
        "layers": [asdict(grid) for grid in grids],
    }
    artifact.write_atomically(folder / MANIFEST, json.dumps(document, indent=1).encode())
    return count


def place(folder: Path, index: int, inputs: int, outputs: int) -> Path:
    """Where the graph of one layer at some widths lies."""
    return folder / f"{index}-{inputs}x{outputs}.onnx"


def read(folder: Path) -> tuple[list[Grid], dict[str, Any]]:
    """The grids of a folder and the facts of its network; DataError says what is wrong."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder}: holds no {MANIFEST}; write the layers with: edgeprune export RUN --layers -o {folder}"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("format") != FORMAT or document.get("version") != VERSION:
            raise ValueError(f"format {document.get('format')!r}, version {document.get('version')!r}")
        grids = [
            Grid(
                LayerShape.from_json(g["shape"]), tuple(map(int, g["inputs"])), tuple(map(int, g["outputs"]))
            )
            for g in document["layers"]
        ]
        return grids, dict(document["network"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataError(f"{path}: expected {FORMAT} version {VERSION}; received {err}") from err


def graph(shape: LayerShape, inputs: int, outputs: int) -> onnx.ModelProto:
    """One layer at one pair of widths, batch 1: input "x", output "y"."""
    if shape.op == "MatMul":
        return _model(
            helper.make_node("MatMul", ["x", "w"], ["y"], "layer"), (*shape.size, inputs), (inputs, outputs)
        )
    groups = shape.groups or outputs // shape.group[1]
    inputs = groups * shape.group[0] if shape.groups == 0 else inputs
    if not groups or inputs % groups or outputs % groups:
        raise DataError(f"{shape.op}: {inputs} and {outputs} channels do not fit {groups} groups")
    transposed = shape.op == "ConvTranspose"
    sides = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    node = helper.make_node(
        shape.op,
        ["x", "w"],
        ["y"],
        "layer",
        kernel_shape=shape.kernel,
        strides=shape.stride,
        pads=(*shape.padding, *shape.padding),
        dilations=shape.dilation,
        group=groups,
    )
    return _model(node, (1, inputs, *shape.size), (*sides, *shape.kernel))


def _model(node: onnx.NodeProto, x: Sequence[int], w: Sequence[int]) -> onnx.ModelProto:
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.01])
    size = helper.make_tensor("size", TensorProto.INT64, [len(w)], w)
    weight = helper.make_node("ConstantOfShape", ["size"], ["w"], "weight", value=value)
    made = helper.make_graph(
        [weight, node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"d{i}" for i in range(len(x))])],
        [size],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
