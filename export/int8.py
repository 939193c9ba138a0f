"""A float32 ONNX graph -> explicit symmetric Q/DQ in int8, calibrated on the user's unlabelled images.

Placement is what TensorRT's parser takes and its fusions want: signed int8, zero points of zero, one scale a
weight channel, biases in float, and of a residual Add only the skip branch quantised, so that convolution,
addition and activation stay one kernel. The quantiser is ONNX Runtime's.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

from edgeprune.errors import DataError, ModelError, UsageError, missing_package
from edgeprune.export import fp16, graph, ranges
from edgeprune.export.parity import Array

CALIBRATIONS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
OPERATORS = ("Conv", "Gemm", "MatMul", "Add")
LAYERS = ("Conv", "Gemm", "MatMul")


def calibrations(word: str) -> tuple[str, ...]:
    """ "auto" is all of them; UsageError for a word that is none."""
    if word != "auto" and word not in CALIBRATIONS:
        raise UsageError(f"--calibration {word}: expected auto, {', '.join(CALIBRATIONS)}")
    return tuple(CALIBRATIONS) if word == "auto" else (word,)


class _Reader:
    """Batches for ONNX Runtime's calibrators, a window of them at a time."""

    def __init__(self, name: str, batches: Sequence[Array]) -> None:
        self._name, self._batches = name, batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._window = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._window, None)
        return None if batch is None else {self._name: batch}


class Quantiser:
    """One prepared graph, quantised as often as asked; ranges are measured once a calibration."""

    def __init__(self, model: onnx.ModelProto, images: Sequence[Array], folder: Path) -> None:
        self._folder = folder
        self._source = folder / "prepared.onnx"
        _prepare(model, folder / "given.onnx", self._source)
        prepared = onnx.load(self._source)
        ranges.name_nodes(prepared)
        onnx.save_model(prepared, self._source)
        self.reference = prepared
        """The float graph whose layers the quantised ones keep the names of."""
        weights = {t.name for t in prepared.graph.initializer}
        nodes = [n for n in prepared.graph.node if n.op_type in OPERATORS]
        self.layers = tuple(n.name for n in nodes if n.op_type == "Add" or set(n.input[1:2]) & weights)
        if all(n.op_type == "Add" for n in nodes if n.name in self.layers):
            raise ModelError(
                "--precision int8: the graph has no Conv, Gemm or MatMul with weights of its own"
            )
        entry = prepared.graph.input[0]
        size = entry.type.tensor_type.shape.dim[0].dim_value
        self._batches = ranges.pieces(images, size or "batch")
        self._entry, self._opset = entry.name, list(model.opset_import)

    def __call__(self, calibration: str, leave: Sequence[str] = ()) -> onnx.ModelProto:
        """The Q/DQ graph; `leave`: layers that stay float32, by the names in `layers`."""
        from onnxruntime import quantization as ortq

        target = self._folder / "quantised.onnx"
        settings: dict[str, Any] = {}
        if "calibration_cache_path" in inspect.signature(ortq.quantize_static).parameters:
            settings["calibration_cache_path"] = self._folder / f"{calibration}.json"
        extra = {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "CalibStridedMinMax": 1,
        }
        try:
            with quiet():
                ortq.quantize_static(
                    str(self._source),
                    str(target),
                    _Reader(self._entry, self._batches),
                    quant_format=ortq.QuantFormat.QDQ,
                    activation_type=ortq.QuantType.QInt8,
                    weight_type=ortq.QuantType.QInt8,
                    per_channel=True,
                    calibrate_method=getattr(ortq.CalibrationMethod, CALIBRATIONS[calibration]),
                    op_types_to_quantize=list(OPERATORS),
                    nodes_to_exclude=list(leave),
                    extra_options=extra,
                    **settings,
                )
        except Exception as err:
            raise ModelError(f"not quantised ({calibration}): {_line(err)}") from err
        made = onnx.load(target)
        free_lone(made)
        free_adds(made)
        graph.clean(made)
        ranges.order(made)
        fp16.check(made)
        return made


def _prepare(model: onnx.ModelProto, given: Path, prepared: Path) -> None:
    try:
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as err:
        raise missing_package("onnxruntime", "cpu", "--precision int8") from err
    onnx.save_model(model, given)
    try:
        with quiet():
            quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
    except Exception as err:
        raise ModelError(f"not prepared for int8: {_line(err)}") from err


def free_adds(model: onnx.ModelProto) -> int:
    """Bypass Q/DQ between a convolution that only one Add reads and that Add, in place; how many."""
    maker = {o: n for n in model.graph.node for o in n.output}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    freed = 0
    for node in model.graph.node:
        if node.op_type != "Add" or any(_op(maker, i) != "DequantizeLinear" for i in node.input):
            continue
        for i, name in enumerate(node.input):
            quantise = maker.get(maker[name].input[0])
            if quantise is None or quantise.op_type != "QuantizeLinear":
                continue
            source = quantise.input[0]
            if _op(maker, source) == "Conv" and readers[source] == 1 and readers[name] == 1:
                node.input[i] = source
                freed += 1
                break
    fp16.drop_dead(model)
    return freed


def free_lone(model: onnx.ModelProto) -> int:
    """Bypass activation Q/DQ that feeds no layer and no Add (before a ReLU, at the output), in place; how many.

    It costs accuracy and a kernel and buys nothing: the range before a ReLU is twice as wide as behind it.
    """
    maker = {o: n for n in model.graph.node for o in n.output}
    useful = {i for n in model.graph.node if n.op_type in OPERATORS for i in n.input}
    outputs = {o.name for o in model.graph.output}
    same: dict[str, str] = {}
    for node in model.graph.node:
        quantise = maker.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantise is not None and quantise.op_type == "QuantizeLinear" and node.output[0] not in useful:
            same[node.output[0]] = quantise.input[0]
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
    ends = {source: name for name, source in same.items() if name in outputs and source in maker}
    for name in ends.values():
        model.graph.node.remove(maker[name])
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = ends.get(name, name)
    fp16.drop_dead(model)
    return len(same)


def _op(maker: dict[str, onnx.NodeProto], name: str) -> str:
    return maker[name].op_type if name in maker else ""


def census(model: onnx.ModelProto) -> dict[str, int]:
    """Layers, those whose data and weight both come from int8, and Q/DQ pairs that feed no int8 layer or Add."""
    maker = {o: n for n in model.graph.node for o in n.output}
    known = {t.name for t in model.graph.initializer}
    layers = quantised = 0
    used: set[str] = set()
    for node in model.graph.node:
        both = [_op(maker, i) == "DequantizeLinear" for i in node.input[:2]]
        if node.op_type in LAYERS and (both[1:] == [True] or set(node.input[1:2]) & known):
            layers += 1
            quantised += all(both)
        if node.op_type in OPERATORS:
            used.update(node.input)
    pairs = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] not in known]
    return {
        "layers": layers,
        "quantised_layers": quantised,
        "pairs": len(pairs),
        "lone_pairs": sum(n.output[0] not in used for n in pairs),
    }


def calibration_images(images: Sequence[Array], most: int = 64) -> list[Array]:
    """Up to `most` images spread over those given, for the ranges; DataError when there are none."""
    given = [b for b in images if len(b)]
    if not given:
        raise DataError("--precision int8 is calibrated on images and received none; give --images DIR")
    together = [image[None] for batch in given for image in batch]
    step = max(1, -(-len(together) // most))
    return together[::step]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ONNX Runtime's tools print and log advice; stdout belongs to the command's answer."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
