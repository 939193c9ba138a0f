"""FP32, FP16 and INT8 against the step before, on every image of two tasks; and FP32 error with random weights.

    python -m benchmarks.precision --data DIR [--pacs DENSE SLIM] [--cifar DENSE SLIM] [--only GLOB] [--list]

DENSE and SLIM are checkpoints or run folders. INT8 is calibrated on target images without labels: on paintings of
PACS, which are also the 2,048 that it is judged on, and on CIFAR's lossy training images, judged on the 10,000 others.
A row is written when it is done and skipped when its checkpoint is the same. On a CPU without FP16 arithmetic ONNX
Runtime computes FP16 in FP32, so those rows show rounding of stored values only. `bar` is what the design asks for.
Latency is interleaved, INT8 beside FP32, one thread of this CPU.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import artifact, header, images
from edgeprune.bench import machine
from edgeprune.commands import lowered
from edgeprune.errors import EdgePruneError
from edgeprune.export import parity, precision
from edgeprune.images import Preprocess
from edgeprune.runtime import ort

RESULTS = Path(__file__).with_name("results") / "precision.json"
BARS = {"fp32": 0.0, "fp16": 0.005, "int8": 0.01}
CALIBRATE, PROVE = 2048, 100_000
RANDOM = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "timm:tf_efficientnet_lite0",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
)
TRUST = ("examples.resnet_cifar:resnet56",)
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A checkpoint with the folders that it is calibrated on and judged on."""

    name: str
    which: str
    checkpoint: Path
    calibration: Path
    judged: Path


def main() -> None:
    words = _words()
    rows: dict[str, Row] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for key, task in _asked(words):
        sha = "random" if task is None else artifact.sha256(header.locate(task.checkpoint))
        there = rows.get(key, {}).get("checkpoint") == sha
        if words.list or there or not fnmatch.fnmatch(key, words.only):
            if words.list:
                print("done   " if there else "missing", key)
            continue
        begin = time.monotonic()
        try:
            row = _random(key) if task is None else _judged(task, key.rsplit(" ", 1)[1])
        except EdgePruneError as err:
            row = {"failed": str(err)[:300]}
        host = machine.describe()
        rows[key] = {"checkpoint": sha, **row, "seconds": round(time.monotonic() - begin, 1), "host": host}
        RESULTS.parent.mkdir(exist_ok=True)
        artifact.write_atomically(RESULTS, json.dumps(rows, indent=1, sort_keys=True).encode() + b"\n")
        print(
            key,
            {k: v for k, v in row.items() if k in ("flips", "n", "relative", "accuracy", "failed")},
            flush=True,
        )


def _words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="what benchmarks.data built")
    for name in ("pacs", "cifar"):
        parser.add_argument(f"--{name}", type=Path, nargs=2, metavar=("DENSE", "SLIM"))
    parser.add_argument("--only", default="*", help="rows whose key matches")
    parser.add_argument("--list", action="store_true", help="say which rows there are, and make none")
    return parser.parse_args()


def _asked(words: argparse.Namespace) -> Iterator[tuple[str, Task | None]]:
    """Keys of the rows, in order, each with its task; rows of random weights have none."""
    folders = {
        "pacs": ("pacs160_art_painting", "pacs160_art_painting"),
        "cifar": ("cifar10_jpeg_train", "cifar10_jpeg_test"),
    }
    for name, (calibration, judged) in folders.items():
        for which, file in zip(("dense", "slim"), getattr(words, name) or (), strict=False):
            task = Task(name, which, file, words.data / calibration, words.data / judged)
            for word in precision.PRECISIONS:
                yield f"{name} {which} {word}", task
    for spec in RANDOM:
        for which in ("dense", "slim"):
            yield f"{spec} {which} random", None


def _judged(task: Task, word: str) -> Row:
    """One precision of one checkpoint on all the images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, network = _export(task, folder)
        pre = Preprocess.from_json(artifact.read(source).meta["preprocess"])
        pixels, labels = _pixels(task.judged, pre)
        facts: Row = {}
        if word == "fp32":
            expected, candidate = network(pixels), source
        else:
            with ort.open(source) as runner:
                expected = parity.outputs(runner, [pixels])
            candidate = folder / f"model.{word}.onnx"
            chosen, _ = _pixels(task.calibration, pre, CALIBRATE)
            made = precision.lower(source, candidate, word, images=[chosen], threads=1)
            facts = {k: v for k, v in made.meta["lowered"].items() if k != "overflowing"}
            facts["overflowing"] = len(made.meta["lowered"].get("overflowing", ()))
        with ort.open(candidate) as runner:
            received = parity.outputs(runner, [pixels])
        found = parity.judge(expected, received)
        if word == "int8":
            facts["latency"] = lowered.recommend(source, candidate, seconds=3.0)
        classes = list(artifact.read(source).meta["classes"])
        right = np.mean([classes[i] == label for i, label in zip(received.argmax(1), labels, strict=True)])
        return _row(found, word, facts) | {"accuracy": round(float(right), 4)}


def _row(found: parity.Parity, word: str, facts: Row) -> Row:
    numbers = {k: v for k, v in parity.summary(found).items() if k != "samples"}
    share = found.flips / found.n
    note = "rounding of stored values only: this CPU computes FP16 in FP32" if word == "fp16" else None
    return {
        **numbers,
        "flip_share": share,
        "bar": BARS[word],
        "passes": share <= BARS[word],
        "note": note,
        **facts,
    }


def _export(task: Task, folder: Path) -> tuple[Path, Any]:
    """model.onnx of a checkpoint with a free batch, and the network as a function of images."""
    import torch

    from edgeprune import checkpoint
    from edgeprune.export import onnx as exporting

    torch.set_num_threads(1)
    network = checkpoint.read(header.locate(task.checkpoint), TRUST)
    path = folder / "model.onnx"
    pre = network.preprocess
    chosen, _ = _pixels(task.calibration, pre, 64)
    exporting.export(network, path, images=[chosen])

    def outputs(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
        with torch.no_grad():
            made = [network.module(torch.from_numpy(pixels[i : i + 64])) for i in range(0, len(pixels), 64)]
        return np.asarray(torch.cat(made).double().numpy())

    return path, outputs


@cache
def _pixels(folder: Path, pre: Preprocess, most: int = PROVE) -> tuple[NDArray[np.float32], list[str | None]]:
    refs = images.find(folder)
    total = min(most, len(refs))
    chosen = [refs[i * len(refs) // total] for i in range(total)]
    pairs = list(images.batches(chosen, pre, 64))
    return np.concatenate([b for b, _ in pairs]), [ref.label for _, kept in pairs for ref in kept]


def _random(key: str) -> Row:
    """The relative error of the float32 file of a network with random weights, dense or cut to half its MACs."""
    import torch

    from edgeprune import opening
    from edgeprune.export import onnx as exporting
    from edgeprune.options import ModelOptions
    from edgeprune.prune import budget, graph, macs, surgery
    from edgeprune.prune.scores.magnitude import Magnitude

    spec, which, _ = key.split(" ")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network, _ = opening.open_network(spec, ModelOptions(weights="none"))
    with torch.no_grad():  # running statistics of some input, so that activations stay finite
        network.module.train()(network.example(4))
    network.module.eval()
    if which == "slim":
        example = network.example()
        couplings = graph.find(network.module, example)
        limits = {"macs": 0.5 * macs.measure(network.module, example)[0]}
        scores = Magnitude()(network.module, couplings)
        plan = budget.plan(network.module, example, couplings, scores, limits)
        surgery.apply(network.module, plan, couplings)
    with tempfile.TemporaryDirectory() as name:
        made = exporting.export(network, Path(name) / "model.onnx")
    found = {k: made.meta["parity"][k] for k in ("n", "relative", "max_abs", "cosine")}
    return {**found, "macs": made.meta["macs"], "bar": 1e-4, "passes": found["relative"] <= 1e-4}


if __name__ == "__main__":
    main()
