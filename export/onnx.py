"""Network -> ONNX file, proved equal to the network before it gets its name.

The one file here that calls torch's exporters: the new one first; when it fails, or what it makes is not
equal, the older TorchScript one, and the file says which made it and why. A file that is not equal is kept
as `<name>.failed.onnx` beside its parity report. MACs and parameters are counted before anything simplifies
the graph.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from edgeprune import __version__
from edgeprune import artifact as artifacts
from edgeprune.artifact import Artifact, TensorSpec
from edgeprune.count import Count, count
from edgeprune.errors import EdgePruneError, MissingHere, ModelError, ParityFailed, UsageError
from edgeprune.export import graph, weights
from edgeprune.export import parity as parities
from edgeprune.export import profile as profiles
from edgeprune.export.parity import FP32, Array, Parity, Tolerance
from edgeprune.export.profile import Profile
from edgeprune.runtime import metadata, ort
from edgeprune.runtime import torch as torch_runtime

if TYPE_CHECKING:
    from edgeprune.model import Network

EXPORTERS = ("dynamo", "torchscript")
INPUT, OUTPUT = "images", "logits"
IN_THE_FILE = (
    "classes",
    "preprocess",
    "spec",
    "precision",
    "exporter",
    "checkpoint",
    "parents",
    "lineage",
    "tool_version",
)


@dataclass(frozen=True)
class _Request:
    profile: Profile
    opset: int
    slim: bool
    parents: tuple[str, ...]


def export(
    network: Network,
    path: Path,
    *,
    batch: str = "1",
    opset: int = 20,
    images: Sequence[Array] | None = None,
    slim: bool = False,
    tolerance: Tolerance = FP32,
    parents: tuple[str, ...] = (),
) -> Artifact:
    """Write `path` and its sidecar; the artefact's meta holds classes, preprocessing, counts and parity.

    batch: "1", or "1:8:32" for a free one. images: batches (n, 3, H, W) float32, already preprocessed, to
    prove it on; random ones by default, recorded. slim: let onnxslim simplify. parents: sha256 of the
    checkpoint. ParityFailed when neither exporter's file equals the network, ModelError when neither can
    export it.
    """
    profiles.check_opset(opset)
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: expected a name that ends in .onnx")
    request = _Request(profiles.parse(batch), opset, slim, parents)
    proof = _proof(network, images, request.profile)
    tried: dict[str, str] = {}
    failures: list[EdgePruneError] = []
    with graph.scratch(path) as folder:
        for exporter in (
            EXPORTERS if opset >= 18 else EXPORTERS[::-1]
        ):  # the new one's translations start at 18
            file = folder / f"{exporter}.onnx"
            try:
                facts = _make(network, request, exporter, file, path.name)
                found = _prove(network, file, proof, tolerance)
            except (ModelError, ParityFailed) as err:
                failures.append(err)
            else:
                faults = parities.faults(found, tolerance)
                if not faults:
                    given = "random" if images is None else "given"
                    return _finish(file, path, {**facts, "parity_images": given, "also_tried": tried}, found)
                _keep_failed(file, path, found)
                failures.append(ParityFailed(f"not equal to the network: {'; '.join(faults)}"))
            tried[exporter] = str(failures[-1])
    both = "; ".join(f"{exporter}: {why}" for exporter, why in tried.items())
    kind = ParityFailed if any(isinstance(f, ParityFailed) for f in failures) else ModelError
    raise kind(f"{path.name}: not exported. {both}")


def _proof(network: Network, images: Sequence[Array] | None, profile: Profile) -> list[Array]:
    proof = list(images) if images is not None else [network.example(8).numpy()]
    if proof and not profile.fixed:  # a second batch size shows a graph that kept the first
        proof.insert(0, proof[0][:1].repeat(profile.lowest, axis=0))
    return proof


def _make(network: Network, request: _Request, exporter: str, file: Path, final: str) -> dict[str, Any]:
    """Export to `file`: clean, check the weights' shapes, count, only then simplify; return the facts."""
    profile = request.profile
    example = network.example(profile.best if profile.fixed else min(max(2, profile.lowest), profile.highest))
    network.module.eval()
    _run(network.module, example, request, exporter, file)
    model = onnx.load(file)
    graph.clean(model)
    counted = count(model)
    weights.check(network.module, example, model, counted)
    facts = _facts(network, request, exporter, counted)
    if request.slim:
        try:
            with _hushed():
                model = graph.simplify(model)
        except MissingHere:
            raise
        except Exception as err:  # the graph is good without; what it is proved to be is decided later
            facts |= {"simplified": False, "not_simplified": f"onnxslim failed: {_cause(err)}"}
    for key, text in metadata.to_props({key: facts[key] for key in IN_THE_FILE}).items():
        model.metadata_props.add(key=key, value=text)
    graph.save(model, file, final)
    return facts


def _run(
    module: torch.nn.Module, example: torch.Tensor, request: _Request, exporter: str, file: Path
) -> None:
    options: dict[str, Any] = {"dynamo": exporter == "dynamo"}
    if exporter == "dynamo":
        size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
        options["external_data"] = size > graph.ONE_FILE
        if not request.profile.fixed:
            batch = torch.export.Dim("batch", min=request.profile.lowest, max=request.profile.highest)
            options["dynamic_shapes"] = ({0: batch},)
    elif not request.profile.fixed:
        options["dynamic_axes"] = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    options |= {
        "input_names": [INPUT],
        "output_names": [OUTPUT],
        "opset_version": request.opset,
        "verbose": False,
    }
    try:
        with _hushed(), torch.no_grad():
            torch.onnx.export(module, (example,), str(file), **options)
    except Exception as err:  # an exporter fails in as many ways as there are networks
        raise ModelError(f"the exporter failed: {_cause(err)}") from err


def _cause(err: BaseException) -> str:
    """The operator at fault when the message names one, and its first line without local paths."""
    text = f"{err} {err.__cause__ or ''}"
    operator = re.search(r"aten::[\w.]+|torch\.ops\.\w+\.[\w.]+|OpOverload\(op='[^']+'", text)
    line = next((part.strip() for part in str(err).splitlines() if part.strip()), type(err).__name__)
    line = re.sub(r"\x1b\[[0-9;]*m|(?:/[\w.\-]+){2,}/?", "", line)[:160]
    return f"operator {operator[0]}: {line}" if operator else line


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Exporters print progress and advice to stdout, which belongs to the command's own answer."""
    level, fast = logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled()
    logging.disable(logging.WARNING)
    # The fast path of attention is one fused operator that no exporter knows.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        torch.backends.mha.set_fastpath_enabled(fast)


def _facts(network: Network, request: _Request, exporter: str, counted: Count) -> dict[str, Any]:
    return {
        "classes": list(network.classes),
        "preprocess": network.preprocess.to_json(),
        "spec": network.spec,
        "opset": request.opset,
        "precision": "fp32",
        "batch": str(request.profile),
        "exporter": exporter,
        "simplified": request.slim,
        "macs": counted.macs,
        "params": counted.params,
        "uncounted": list(counted.uncounted),
        "checkpoint": request.parents[0] if request.parents else None,
        "parents": list(request.parents),
        "lineage": [str(step["command"]) for step in network.history if "command" in step],
        "tool_version": __version__,
    }


def _prove(network: Network, file: Path, images: Sequence[Array], tolerance: Tolerance) -> Parity:
    height, width = network.preprocess.size
    inputs = (TensorSpec(INPUT, ("batch", 3, height, width)),)
    outputs = (TensorSpec(OUTPUT, ("batch", len(network.classes))),)
    with (
        torch_runtime.open(network.module, inputs, outputs, threads=0) as reference,
        ort.open(file, threads=torch.get_num_threads()) as candidate,
    ):
        return parities.compare(reference, candidate, images, tolerance)


def _finish(file: Path, path: Path, facts: dict[str, Any], found: Parity) -> Artifact:
    with ort.open(file) as opened:
        inputs, outputs = opened.inputs, opened.outputs
    graph.move(file, path)
    data = path.with_name(path.name + ".data")
    if data.is_file():
        facts["data"] = {"file": data.name, "sha256": artifacts.sha256(data)}
    facts["parity"] = found.to_json()
    parents = tuple(facts["parents"])
    made = Artifact(path, "onnx", artifacts.sha256(path), inputs, outputs, parents, "", facts)
    made.write_sidecar()
    return made


def _keep_failed(file: Path, path: Path, found: Parity) -> None:
    failed = path.with_name(f"{path.stem}.failed.onnx")
    graph.move(file, failed)
    report = json.dumps(found.to_json(), indent=2).encode()
    artifacts.write_atomically(failed.with_name(failed.name + ".parity.json"), report)
