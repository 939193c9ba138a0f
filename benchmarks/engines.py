"""Which networks build to TensorRT-RTX engines ahead of time: precision x GPU x batch, and what was built.

    python -m benchmarks.engines [--only GLOB] [--limit SECONDS] [--list]

"NAME pruned" is the network cut to half of its MACs.

Random weights with batch norms set on random images, 224 x 224, one row a build under results/engines.json. A row that
is present is skipped. With random weights answers have no margins, so flips say nothing: `parity` tells the relative
error, and nothing is refused for flips.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.artifact import sha256, write_atomically
from edgeprune.errors import EdgePruneError
from edgeprune.export import engine, precision
from edgeprune.export.parity import Array

RESULTS = Path(__file__).with_name("results") / "engines.json"
NETWORKS = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "timm:tf_efficientnet_lite0",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
)
PRUNED = " pruned"
KEPT = 0.5  # of the MACs
CAPABILITIES = ("8.6", "8.9", "12.0")
BATCHES = ("1", "1:8:32")
IMAGES = 16
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="*", help="rows whose key matches")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), help="seconds after which no row is begun"
    )
    parser.add_argument("--list", action="store_true", help="print the rows and their state")
    words = parser.parse_args()
    end = time.monotonic() + words.limit
    rows: dict[str, Row] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for batch, pruned, spec in itertools.product(BATCHES, ("", PRUNED), NETWORKS):
        keys = {
            f"{spec}{pruned} {word} {batch} {target}": (word, target)
            for word, target in itertools.product(precision.PRECISIONS, CAPABILITIES)
        }
        if words.list:
            print(
                *(f"{'done' if k in rows else 'open'}  {k}" for k in keys if fnmatch.fnmatch(k, words.only)),
                sep="\n",
            )
            continue
        missing = {k: v for k, v in keys.items() if k not in rows and fnmatch.fnmatch(k, words.only)}
        with tempfile.TemporaryDirectory() as name:
            files: dict[str, tuple[Path, Row]] = {}
            for key, (word, target) in missing.items():
                if time.monotonic() > end:
                    return
                rows[key] = _row(spec + pruned, word, batch, target, Path(name), files)
                RESULTS.parent.mkdir(exist_ok=True)
                write_atomically(RESULTS, json.dumps(rows, indent=1, sort_keys=True).encode() + b"\n")
                print(key, rows[key].get("failed") or f"{rows[key]['bytes'] / 2**20:.2f} MiB", flush=True)


def _row(
    spec: str, word: str, batch: str, target: str, folder: Path, files: dict[str, tuple[Path, Row]]
) -> Row:
    row: Row = {"network": spec, "precision": word, "batch": batch, "capability": target, "failed": None}
    try:
        if word not in files:
            files[word] = _file(spec, word, batch, folder)
        path, facts = files[word]
        options = engine.BuildOptions("tensorrt-rtx", batch, (target,))
        made = engine.build(path, folder / "built.engine", options).meta["engine"]
    except EdgePruneError as err:
        return {**row, "failed": str(err).replace(str(folder), "")[:300]}
    kept = ("version", "bytes", "layers", "build_s", "profile", "warnings")
    return {**row, **facts, **{k: made[k] for k in kept}}


def _file(spec: str, word: str, batch: str, folder: Path) -> tuple[Path, Row]:
    """The ONNX file of a precision and its facts; the float32 one is exported when it is not there."""
    source = folder / "model.onnx"
    if not source.is_file():
        _export(spec, batch, source)
    path = source
    facts: Row = {}
    if word != "fp32":
        path = folder / f"model.{word}.onnx"
        made = precision.lower(
            source, path, word, images=[_images()], max_flip=1.0, calibration="minmax", threads=1
        )
        lowered = made.meta["lowered"]
        names = ("layers", "quantised_layers", "lone_pairs", "kept_fp32", "overflowing", "calibration")
        facts = {f"onnx_{k}": lowered[k] for k in names if k in lowered}
        parity = made.meta["parity"]
        facts["parity"] = {k: parity[k] for k in ("n", "relative", "cosine", "flips", "nan")}
    return path, {**facts, "onnx_bytes": path.stat().st_size, "onnx_sha256": sha256(path)}


def _export(spec: str, batch: str, path: Path) -> None:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = _module(spec.removesuffix(PRUNED))
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
    with torch.no_grad():
        module.train()(torch.from_numpy(_images()))
    module.eval()
    if spec.endswith(PRUNED):
        _prune(module)
    fixed = batch == "1"
    torch.onnx.export(
        module,
        (torch.zeros(1 if fixed else 2, 3, 224, 224),),
        str(path),
        dynamo=True,
        opset_version=20,
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
        dynamic_shapes=None if fixed else ({0: torch.export.Dim("batch", min=1, max=32)},),
    )


def _prune(module: Any) -> None:
    """Cut half of the MACs away, in multiples of 8, by the magnitude of the channels."""
    import torch

    from edgeprune.prune import budget, graph, macs, surgery
    from edgeprune.prune.scores.magnitude import Magnitude

    example = torch.zeros(1, 3, 224, 224).normal_(generator=torch.Generator().manual_seed(0))
    couplings = graph.find(module, example)
    dense, _ = macs.measure(module, example)
    plan = budget.plan(module, example, couplings, Magnitude()(module, couplings), {"macs": KEPT * dense})
    surgery.apply(module, plan, couplings)


def _module(spec: str) -> Any:
    home, name = spec.split(":")
    if home == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    import torchvision

    return torchvision.models.get_model(name, weights=None)


def _images() -> Array:
    """(IMAGES, 3, 224, 224): smooth noise, so that it survives the strides."""
    drawn = np.random.default_rng(0).standard_normal((IMAGES, 3, 14, 14))
    return np.kron(drawn, np.ones((16, 16))).astype(np.float32)


if __name__ == "__main__":
    main()
