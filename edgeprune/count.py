"""MACs and parameters of an ONNX graph: the one counter behind every reported number, so it must not guess.

One multiply-add is one MAC. Counted: Conv (also grouped), ConvTranspose, Gemm, MatMul, Einsum, and their
quantised forms; bias additions, norms, activations and pooling are not. Padding positions count, as
everywhere in the field. A graph with a free batch is counted at batch 1; one with a fixed batch B is
counted whole and divided by B. An operator that multiplies but is not known here is named in `uncounted`,
not passed over.

Parameters are the elements of the float (or 8-bit weight) initialisers of rank 1 and more that a node uses,
each initialiser once. After export batch norms are folded, so their four vectors are gone; that is what the
device holds.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto

from edgeprune import shapes
from edgeprune.errors import DataError, ModelError
from edgeprune.shapes import Shape

_WEIGHTS = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.UINT8,
    }
)
_PASSES_ON = frozenset({"Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape"})
_UNKNOWN = frozenset({"Attention", "LSTM", "GRU", "RNN", "DeformConv", "If", "Loop", "Scan"})


@dataclass(frozen=True)
class LayerCount:
    """One operator that multiplies.

    name: the layer its weight belongs to ("layer1.0.conv1"), or the node's name. weight_shape: as the operator
    takes it; None when both operands depend on the image. params: elements of its own constants (weight and bias).
    """

    name: str
    op: str
    macs: int
    params: int
    weight_shape: Shape | None
    output_shape: Shape


@dataclass(frozen=True)
class Count:
    """Of one image. macs: the sum over `layers`. params: of the whole graph, so also norms and embeddings."""

    macs: int
    params: int
    layers: tuple[LayerCount, ...]
    uncounted: tuple[str, ...] = ()


def count(model: Path | str | onnx.ModelProto) -> Count:
    """Count a file or a model; weights on disk beside the file are not read.

    DataError when it is not an ONNX file; ModelError when a shape cannot be known, with the node's name.
    """
    given = _read(Path(model)) if isinstance(model, (Path, str)) else model
    light = shapes.without_weights(given)
    batch = shapes.set_batch(light.graph)
    graph = _Graph(light)
    layers, uncounted = [], []
    for node in light.graph.node:
        rule = _RULES.get(node.op_type)
        if rule is not None:
            layers.append(graph.layer(node, rule, batch))
        elif node.op_type in _UNKNOWN or node.domain not in ("", "ai.onnx"):
            uncounted.append(f"{node.name or node.output[0]} ({node.op_type})")
    return Count(sum(c.macs for c in layers), graph.params(), tuple(layers), tuple(uncounted))


class _Graph:
    """Shapes and constants of a graph, by tensor name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._shapes = shapes.infer(model)
        self.constants = {t.name: t for t in model.graph.initializer}
        self._maker = {output: node for node in model.graph.node for output in node.output}
        self._used = {name for node in model.graph.node for name in node.input}
        self._fixed = {"", *self.constants}  # tensors that are the same for every image
        for node in model.graph.node:  # in an order in which inputs come first
            if self._fixed.issuperset(node.input):
                self._fixed.update(node.output)

    def layer(self, node: NodeProto, rule: _Rule, batch: int) -> LayerCount:
        operands = [self._shape(node, node.input[i]) for i in rule.operands(node)]
        output = self._shape(node, node.output[0])
        macs = rule.macs(node, operands, output)
        constants = [(i, self.constant(node.input[i])) for i in range(len(node.input)) if node.input[i]]
        own = {t.name: t for _, t in constants if t is not None and t.data_type in _WEIGHTS and len(t.dims)}
        weight = next((t for i, t in reversed(constants) if t is not None and i in rule.operands(node)), None)
        name = _name(node, weight)
        shape = None if weight is None else operands[self._position(node, rule, weight)]
        return LayerCount(name, node.op_type, macs // batch, sum(map(_elements, own.values())), shape, output)

    def _position(self, node: NodeProto, rule: _Rule, weight: TensorProto) -> int:
        sources = [self.constant(node.input[i]) for i in rule.operands(node)]
        return next(k for k, t in enumerate(sources) if t is not None and t.name == weight.name)

    def constant(self, name: str) -> TensorProto | None:
        """The initialiser behind a tensor, through nodes that pass it on or compute it from initialisers alone.

        A weight that is standardised in the graph (NFNet, BiT) is its layer's all the same. None when the image has
        a part in it.
        """
        while name not in self.constants:
            node = self._maker.get(name)
            if node is None or not node.input:
                return None
            if node.op_type not in _PASSES_ON and name not in self._fixed:
                return None
            name = node.input[0]
        tensor: TensorProto = self.constants[name]
        return tensor

    def params(self) -> int:
        quantising = [n for n in self._maker.values() if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
        scales = {name for node in quantising for name in node.input[1:]}
        held = [t for name, t in self.constants.items() if name in self._used and name not in scales]
        return sum(_elements(t) for t in held if t.data_type in _WEIGHTS and t.dims)

    def _shape(self, node: NodeProto, name: str) -> Shape:
        if name in self._shapes:
            return self._shapes[name]
        where = f"{node.name or node.output[0]} ({node.op_type})"
        if why := shapes.contradiction(self._model):
            raise ModelError(f"{where}: {why}; export it again")
        raise ModelError(
            f"{where}: the shape of {name!r} is not known before it runs; export with a fixed batch"
        )


@dataclass(frozen=True)
class _Rule:
    """Which inputs are multiplied, and how many MACs that takes: macs(node, operand shapes, output shape)."""

    macs: Callable[[NodeProto, Sequence[Shape], Shape], int]
    inputs: tuple[int, ...] | None = (0, 1)

    def operands(self, node: NodeProto) -> tuple[int, ...]:
        return tuple(range(len(node.input))) if self.inputs is None else self.inputs


def _conv(node: NodeProto, operands: Sequence[Shape], output: Shape) -> int:
    # weight (M, C/groups, *kernel): each output element takes C/groups * kernel.
    return math.prod(output) * math.prod(operands[1][1:])


def _conv_transpose(node: NodeProto, operands: Sequence[Shape], output: Shape) -> int:
    # weight (C, M/groups, *kernel): each input element is spread over M/groups * kernel.
    return math.prod(operands[0]) * math.prod(operands[1][1:])


def _gemm(node: NodeProto, operands: Sequence[Shape], output: Shape) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(output) * operands[0][0 if transposed else 1]


def _matmul(node: NodeProto, operands: Sequence[Shape], output: Shape) -> int:
    return math.prod(output) * operands[0][-1]


def _einsum(node: NodeProto, operands: Sequence[Shape], output: Shape) -> int:
    """Product of all index sizes, once for each operand after the first; no cheaper order is assumed."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    sizes: dict[str, int] = {}
    terms = equation.split("->")[0].split(",")
    for term, shape in zip(terms, operands, strict=True):
        before, dots, after = term.partition("...")
        middle = shape[len(before) : len(shape) - len(after)] if dots else ()
        letters = [*before, *(f"...{len(middle) - i}" for i in range(len(middle))), *after]
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values()) * (len(terms) - 1)


_RULES: Mapping[str, _Rule] = {
    "Conv": _Rule(_conv),
    "ConvInteger": _Rule(_conv),
    "QLinearConv": _Rule(_conv, (0, 3)),
    "ConvTranspose": _Rule(_conv_transpose),
    "Gemm": _Rule(_gemm),
    "MatMul": _Rule(_matmul),
    "MatMulInteger": _Rule(_matmul),
    "QLinearMatMul": _Rule(_matmul, (0, 3)),
    "Einsum": _Rule(_einsum, None),
}


def _name(node: NodeProto, weight: TensorProto | None) -> str:
    """The layer a node came from: by its weight, else the exporter's note, else its own name."""
    if weight is not None and weight.name.endswith(".weight"):
        return weight.name.removesuffix(".weight")
    for note in node.metadata_props:
        if note.key == "pkg.torch.onnx.name_scopes":
            scopes = [s for s in ast.literal_eval(note.value)[:-1] if s]
            if scopes:
                return str(scopes[-1])
    return node.name or node.output[0]


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror}); expected an ONNX file") from err
    except Exception as err:  # protobuf's own error has moved between modules from release to release
        raise DataError(
            f"{path}: not an ONNX file, or truncated ({type(err).__name__}); export it again"
        ) from err
    if not model.graph.node:
        raise DataError(f"{path}: an ONNX file without a graph; export it again")
    return model


def _elements(tensor: TensorProto) -> int:
    return math.prod(tensor.dims)
