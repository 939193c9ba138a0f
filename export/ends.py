"""The two ends of a network put into its graph: pixels go in, probabilities or the likeliest classes come out.

The last step before an engine, and torch-free: it takes any precision, because those keep float32 at their ends.
`images` becomes uint8, (n, H, W, 3) or (n, 3, H, W), and is cast before anything else, as TensorRT asks of uint8
inputs. The plain file stays beside it: calibration, parity and MACs go on speaking of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeprune import artifact as artifacts
from edgeprune import images
from edgeprune.artifact import Artifact
from edgeprune.errors import BrokenModel, DataError, ModelError, ParityFailed, UsageError
from edgeprune.export import graph
from edgeprune.images import Preprocess
from edgeprune.runtime import answers, metadata, ort
from edgeprune.runtime.runner import Array, Runner

LAYOUTS = ("nhwc", "nchw")
RANDOM_IMAGES = 8
SUFFIX = ".e2e"
# Largest error relative to the answers' scale: the same arithmetic, but a half-precision or quantised graph rounds
# an input that differs in its last bit to its next step.
ALLOWED = {"fp32": 1e-4, "fp16": 1e-2, "int8": 5e-2}


@dataclass(frozen=True)
class Ends:
    """layout: "nhwc" or "nchw" of the uint8 images, "" for normalised float32. top_k implies softmax; 0 is off."""

    layout: str = ""
    softmax: bool = False
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.layout and self.layout not in LAYOUTS:
            raise UsageError(f"--layout {self.layout}: expected {' or '.join(LAYOUTS)}")
        if self.top_k < 0:
            raise UsageError(f"--top-k {self.top_k}: expected how many classes, 1 or more")

    def __bool__(self) -> bool:
        return bool(self.layout or self.softmax or self.top_k)


def attach(
    source: Path,
    path: Path,
    ends: Ends,
    *,
    pixels: Sequence[NDArray[np.uint8]] | None = None,
    threads: int = 0,
) -> Artifact:
    """Write `path` and its sidecar: `source` with `ends`; parents is the sha256 of `source`.

    pixels: batches (n, H, W, 3) uint8 to prove it on; random ones by default. ModelError when the file has more
    than one input or free sizes, DataError when nothing says its preprocessing, ParityFailed when the two differ.
    """
    try:
        model = onnx.load(source)
    except Exception as err:
        raise BrokenModel(f"{source}: not a whole ONNX file; export it again") from err
    found = artifacts.read(source)
    facts = {**metadata.from_props({p.key: p.value for p in model.metadata_props}), **found.meta}
    if "preprocess" not in facts:
        raise DataError(f"{source}: nothing says how its images are prepared; give --mean and --std")
    if "ends" in facts:
        raise ModelError(f"{source}: has ends already; give the file without {SUFFIX}")
    pre = Preprocess.from_json(facts["preprocess"])
    if ends.layout:
        _take_pixels(model.graph, pre, ends.layout, source)
    if ends.softmax or ends.top_k:
        _give_classes(model.graph, ends, source)
    whole = replace(pre, layout=ends.layout or pre.layout)
    parents = (artifacts.sha256(source),)
    facts |= {"preprocess": whole.to_json(), "ends": asdict(ends), "parents": list(parents)}
    _write_props(model, {k: facts[k] for k in ("preprocess", "ends", "parents")})
    with graph.scratch(path) as folder:
        file = folder / "made.onnx"
        graph.save(model, file, path.name)
        with ort.open(source, threads=threads) as plain, ort.open(file, threads=threads) as made:
            shown = list(pixels) if pixels else [_random(pre)]
            proof = prove(plain, made, shown, pre, ends)
            inputs, outputs = made.inputs, made.outputs
        allowed = ALLOWED[str(facts.get("precision", "fp32"))]
        if proof["relative"] > allowed:
            raise ParityFailed(
                f"{path.name}: with its ends the answers move by {proof['relative']:.1e} of their scale where "
                f"{allowed:.0e} is allowed ({proof['n']} images)"
            )
        graph.move(file, path)
    proof["images"] = "given" if pixels else "random"
    facts["ends"] = {**asdict(ends), "parity": proof}
    wrote = Artifact(path, "onnx", artifacts.sha256(path), inputs, outputs, parents, "", facts)
    wrote.write_sidecar()
    return wrote


def _write_props(model: onnx.ModelProto, facts: Mapping[str, Any]) -> None:
    props = {p.key: p.value for p in model.metadata_props} | metadata.to_props(facts)
    del model.metadata_props[:]
    for key, text in props.items():
        model.metadata_props.add(key=key, value=text)


def _take_pixels(held: onnx.GraphProto, pre: Preprocess, layout: str, source: Path) -> None:
    """Make the input uint8 and put (pixel / 255 - mean) / std before its readers, in place."""
    inputs = [t for t in held.input if t.name not in {w.name for w in held.initializer}]
    dims = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    if len(dims) != 4 or tuple(dims[1:]) != (3, *pre.size):
        raise ModelError(
            f"{source}: --embed-preprocess takes a network of one input (n, 3, {pre.size[0]}, {pre.size[1]}), "
            f"received {[(t.name, dims) for t in inputs]}"
        )
    given = inputs[0]
    name, batch = given.name, given.type.tensor_type.shape.dim[0]
    if given.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ModelError(f"{source}: input {name} is not float32; give the file without {SUFFIX}")
    scale, shift = (v.reshape(1, 3, 1, 1) for v in images.scale_shift(pre))
    ready = f"{name}_normalised"
    for node in held.node:
        node.input[:] = [ready if read == name else read for read in node.input]
    held.initializer.extend(
        [numpy_helper.from_array(scale, "pixel_scale"), numpy_helper.from_array(shift, "pixel_shift")]
    )
    steps = [helper.make_node("Cast", [name], ["pixels_float"], name="pixels_to_float", to=TensorProto.FLOAT)]
    if layout == "nhwc":
        order = helper.make_node(
            "Transpose", ["pixels_float"], ["pixels_nchw"], name="pixels_to_nchw", perm=[0, 3, 1, 2]
        )
        steps.append(order)
    last = steps[-1].output[0]
    steps.append(helper.make_node("Mul", [last, "pixel_scale"], ["pixels_scaled"], name="pixels_scale"))
    steps.append(helper.make_node("Add", ["pixels_scaled", "pixel_shift"], [ready], name="pixels_shift"))
    rest = list(held.node)
    del held.node[:]
    held.node.extend([*steps, *rest])
    sizes = (*pre.size, 3) if layout == "nhwc" else (3, *pre.size)
    first: int | str = batch.dim_value or batch.dim_param or "batch"
    given.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, [first, *sizes]))


def _give_classes(held: onnx.GraphProto, ends: Ends, source: Path) -> None:
    """Put softmax, and the K largest of it, behind the first output; other outputs are dropped."""
    logits = held.output[0]
    dims = logits.type.tensor_type.shape.dim
    if len(dims) != 2 or not dims[1].dim_value:
        raise ModelError(
            f"{source}: --softmax and --top-k take a classifier; its output {logits.name} is not (n, K)"
        )
    first: int | str = dims[0].dim_value or dims[0].dim_param or "batch"
    count = dims[1].dim_value
    held.node.append(
        helper.make_node("Softmax", [logits.name], ["probabilities"], name="probabilities", axis=-1)
    )
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [first, count])]
    if ends.top_k:
        if ends.top_k > count:
            raise UsageError(f"--top-k {ends.top_k}: the network has {count} classes")
        held.initializer.append(numpy_helper.from_array(np.array([ends.top_k], np.int64), "how_many"))
        held.node.append(
            helper.make_node(
                "TopK", ["probabilities", "how_many"], ["scores", "classes"], name="likeliest", axis=-1
            )
        )
        shape = [first, ends.top_k]
        outputs = [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("classes", TensorProto.INT64, shape),
        ]
    del held.output[:]
    held.output.extend(outputs)


def _random(pre: Preprocess) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (RANDOM_IMAGES, *pre.size, 3), dtype=np.uint8)


def prove(
    plain: Runner, made: Runner, pixels: Sequence[NDArray[np.uint8]], pre: Preprocess, ends: Ends
) -> dict[str, Any]:
    """Largest error of `made` on uint8 (n, H, W, 3) against numpy's ends around `plain`, over the answers' scale.

    Of a top K both are compared: the k-th largest score, and the score of the class that is named.
    """
    worst, scale, seen = 0.0, 0.0, 0
    for batch in pixels:
        expected = answers.outputs(plain, images.normalise(batch, pre))[plain.outputs[0].name].astype(
            np.float64
        )
        if ends.softmax or ends.top_k:
            expected = answers.softmax(expected)
        fed: Array = images.normalise(batch, replace(pre, layout=ends.layout or pre.layout))
        received = answers.outputs(made, fed)
        first = received[made.outputs[0].name].astype(np.float64)
        if ends.top_k:
            ordered = -np.sort(-expected, axis=1)[:, : ends.top_k]
            named = np.take_along_axis(expected, received["classes"], axis=1)
            errors = np.maximum(np.abs(first - ordered), np.abs(first - named))
        else:
            errors = np.abs(first - expected)
        worst = max(worst, float(np.where(np.isfinite(errors), errors, np.inf).max()))
        scale, seen = max(scale, float(np.abs(expected).max())), seen + len(batch)
    return {"n": seen, "max_abs": worst, "relative": worst / scale if scale else worst}
