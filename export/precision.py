"""An ONNX file in float32 -> the same network in fp16 or int8, proved on the user's images before it gets its name.

No torch: an exported file can be lowered on the device. The reference is always the float32 file, run by ONNX
Runtime. For int8 the calibration is the one with the fewest changed answers, then the smallest error; when more
answers change than half of what the gate allows, layers are left in float, the most sensitive first, as few as
bring it there. Half, because new images flip more often than those that the network was adapted to and the layers
chosen on: ResNet-56 on CIFAR behind JPEG flipped 0.6% of those and 0.9% of others. Biases are corrected after.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeprune import __version__
from edgeprune import artifact as artifacts
from edgeprune.artifact import Artifact
from edgeprune.errors import ModelError, ParityFailed, UsageError
from edgeprune.export import bias, graph, reading, sensitive
from edgeprune.export import fp16 as half
from edgeprune.export import int8 as quantised
from edgeprune.export import parity as parities
from edgeprune.export.parity import Array, Parity, Tolerance
from edgeprune.runtime import metadata, ort

FP16 = Tolerance("fp16", relative=None, flips=0.005)
INT8 = Tolerance("int8", relative=None, flips=0.01)
TOLERANCES = {"fp16": FP16, "int8": INT8}
PRECISIONS = ("fp32", *TOLERANCES)
RANDOM_IMAGES = 8
IN_THE_FILE = ("precision", "parents", "lowered", "tool_version")


def tolerance(precision: str, max_flip: float | None) -> Tolerance:
    """The gate of a precision, with the user's share of changed answers when there is one."""
    gate = TOLERANCES[precision]
    return gate if max_flip is None else replace(gate, flips=max_flip)


def name(precision: str) -> str:
    """The file's name: model.onnx, model.fp16.onnx, model.int8.onnx."""
    return "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"


@dataclass
class _Proof:
    """Runs candidates beside the float32 file on the same images."""

    source: Path
    folder: Path
    images: Sequence[Array]
    threads: int
    expected: NDArray[np.float64] | None = None
    names: Sequence[str] = ()

    def __call__(self, model: onnx.ModelProto, gate: Tolerance) -> Parity:
        file = self.folder / "candidate.onnx"
        graph.save(model, file, file.name)
        if self.expected is None:
            with ort.open(self.source, threads=self.threads) as reference:
                self.expected = parities.outputs(reference, self.images)
        with ort.open(file, threads=self.threads) as candidate:
            return parities.against(self.expected, candidate, self.images, gate)


def lower(
    source: Path,
    path: Path,
    precision: str,
    *,
    images: Sequence[Array] | None = None,
    max_flip: float | None = None,
    calibration: str = "auto",
    threads: int = 0,
    names: Sequence[str] = (),
) -> Artifact:
    """Write `path` and its sidecar from the float32 file `source`; parents is the sha256 of `source`.

    images: batches (n, 3, H, W) float32, already preprocessed; random ones for fp16 when there are none,
    recorded; int8 needs real ones. names: of the images, one each, for the ten worst. Each image's numbers are in
    `<path>.parity.json`. ParityFailed keeps the file as `<name>.failed.onnx` beside the same.
    """
    if precision not in TOLERANCES:
        raise UsageError(f"--precision {precision}: expected {', '.join(PRECISIONS)}")
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: expected a name that ends in .onnx")
    quantised.calibrations(calibration)
    if precision == "int8" and not any(len(b) for b in images or ()):
        raise ParityFailed("--precision int8 is calibrated on images and received none; give --images DIR")
    given = reading.read(source)
    gate = tolerance(precision, max_flip)
    with graph.scratch(path) as folder:
        proof = _Proof(source, folder, list(images) if images else _random(source), threads)
        if precision == "fp16":
            model, facts = half.convert(given, proof.images, folder, threads)
            found = proof(model, gate)
        else:
            model, facts, found = _int8(given, proof, gate, calibration)
        facts["parity_images"] = "given" if images else "random"
        proof.names = names
        return _finish(given, model, proof, path, gate, found, {"precision": precision, "lowered": facts})


def _random(source: Path) -> list[Array]:
    with ort.open(source) as runner:
        spec = runner.inputs[0]
    if not all(isinstance(d, int) for d in spec.shape[1:]):
        raise ModelError(f"{source}: input {spec.name} has a free size {list(spec.shape)}; give --images DIR")
    shape = (RANDOM_IMAGES, *(int(d) for d in spec.shape[1:]))
    return [np.random.default_rng(0).standard_normal(shape).astype(np.float32)]


def _key(found: Parity) -> tuple[int, int, float]:
    return found.nan, found.flips, found.relative if found.relative is not None else float("inf")


def _int8(
    given: onnx.ModelProto, proof: _Proof, gate: Tolerance, calibration: str
) -> tuple[onnx.ModelProto, dict[str, Any], Parity]:
    chosen = quantised.calibration_images(proof.images)
    make = quantised.Quantiser(given, chosen, proof.folder)
    made = {word: make(word) for word in quantised.calibrations(calibration)}
    tried = {word: proof(model, gate) for word, model in made.items()}
    best = min(tried, key=lambda word: _key(tried[word]))

    def corrected(left: Sequence[str]) -> tuple[onnx.ModelProto, int]:
        """Back in float first, then corrected, so that each bias fits the graph that is kept."""
        model = sensitive.leave(made[best], make.reference, left)
        return model, bias.correct(model, make.reference, chosen)

    model, moved = corrected([])
    after, found = proof(model, gate), tried[best]
    if _key(after) < _key(found):
        found = after
    else:
        model, moved = made[best], 0
    facts = {
        "calibration": best,
        "calibration_images": len(chosen),
        "corrected": dict(parities.summary(after)),
    }
    left: list[str] = []
    errors: dict[str, float] = {}
    aim = replace(gate, flips=gate.flips / 2)
    if parities.faults(found, aim):
        errors = sensitive.errors(made[best], make.reference, make.layers, proof.images)
        order = sorted(errors, key=lambda layer: errors[layer], reverse=True)
        count, less = _fewest(lambda k: proof(corrected(order[:k])[0], gate), len(order), (aim, gate))
        if _key(less) < _key(found):
            found, left = less, order[:count]
            model, moved = corrected(left)
    facts |= {
        "tried": {word: dict(parities.summary(p)) for word, p in tried.items()},
        "biases_corrected": moved,
        "left_in_float": left,
        "sensitivity": {layer: errors[layer] for layer in left},
        **quantised.census(model),
    }
    half.check(model)
    return model, facts, found


def _fewest(run: Callable[[int], Parity], most: int, gates: Sequence[Tolerance]) -> tuple[int, Parity]:
    """The fewest layers in float that pass the first gate that any number passes, by doubling and halving.

    All but one layer when none does. `run` is called once a number.
    """
    known = cache(run)

    def passes(count: int, gate: Tolerance) -> bool:
        return not parities.faults(known(count), gate)

    steps = [min(1 << i, most - 1) for i in range((most - 1).bit_length() + 1)]
    for gate in gates:
        high = next((k for k in steps if passes(k, gate)), None)
        if high is None:
            continue
        low = steps[steps.index(high) - 1] if high > 1 else 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if passes(middle, gate) else (middle, high)
        return high, known(high)
    return most - 1, known(most - 1)


def _finish(
    given: onnx.ModelProto,
    model: onnx.ModelProto,
    proof: _Proof,
    path: Path,
    gate: Tolerance,
    found: Parity,
    facts: dict[str, Any],
) -> Artifact:
    parents = (artifacts.sha256(proof.source),)
    before = {**metadata.from_props({p.key: p.value for p in given.metadata_props})}
    before |= artifacts.read(proof.source).meta
    facts = {**before, **facts, "parents": list(parents), "tool_version": __version__}
    facts["parity"] = found.to_json()
    facts["parity"]["worst"] = [parities.named(row, proof.names) for row in facts["parity"]["worst"]]
    props = {p.key: p.value for p in given.metadata_props}
    props |= metadata.to_props({key: facts[key] for key in IN_THE_FILE})
    del model.metadata_props[:]
    for key, text in props.items():
        model.metadata_props.add(key=key, value=text)
    file = proof.folder / "made.onnx"
    graph.save(model, file, path.name)
    if parities.faults(found, gate):
        failed = path.with_name(f"{path.stem}.failed.onnx")
        graph.move(file, failed)
        report = json.dumps({**facts["parity"], "samples": found.rows(proof.names)}, indent=2).encode()
        artifacts.write_atomically(failed.with_name(failed.name + ".parity.json"), report)
        parities.gate(found, gate, f"{path.name} is not equal to {proof.source.name}")
    with ort.open(file) as opened:
        inputs, outputs = opened.inputs, opened.outputs
    graph.move(file, path)
    rows = json.dumps({**facts["parity"], "samples": found.rows(proof.names)}).encode()
    artifacts.write_atomically(path.with_name(path.name + ".parity.json"), rows)
    made = Artifact(path, "onnx", artifacts.sha256(path), inputs, outputs, parents, "", facts)
    made.write_sidecar()
    return made
