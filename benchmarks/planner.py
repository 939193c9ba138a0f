"""What the planner's two constants are worth: speed at half of the MACs, with other values in their place.

    python -m benchmarks.planner [--only GLOB] [--list]

`moving`: MACs in the time of one element moved (edgeprune.prune.macs.MOVING), 0 for MACs alone. `enough`: groups of a
convolution from which on whole ones go (edgeprune.prune.families.ENOUGH). Random weights, magnitude, ONNX Runtime on
one thread, dense and slim interleaved; `share` is the speed-up over the reduction of MACs, 1 where time falls as they
do.

Rows are written as they finish and skipped when present.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import accuracy, coverage

RESULTS = Path(__file__).with_name("results") / "planner.json"
PLAIN = (
    "torchvision:resnet18",
    "timm:mobilenetv2_100",
    "timm:efficientnet_lite0",
    "timm:convnext_atto",
    "torchvision:densenet121",
    "timm:vit_tiny_patch16_224",
    "torchvision:mobilenet_v3_small",
    "timm:regnety_002",
)
GROUPED = ("timm:regnetx_002", "timm:regnety_002", "torchvision:resnext50_32x4d")
MOVING, ENOUGH = (0, 48, 150), (6, 1000)


def keys() -> Iterator[tuple[str, str, int]]:
    """Constant, value and network of every row."""
    for spec in PLAIN:
        yield from ((spec, "moving", value) for value in MOVING)
    for spec in GROUPED:
        yield from ((spec, "enough", value) for value in ENOUGH)


def row(spec: str, constant: str, value: int, folder: Path) -> dict[str, Any]:
    """Cut to half with one constant changed, and time it against the dense network in `folder`."""
    from edgeprune.prune import families, macs

    macs.MOVING, families.ENOUGH = 48.0, 6
    setattr(macs if constant == "moving" else families, constant.upper(), value)
    network = coverage._open(spec)
    facts: dict[str, Any] = {"kept": coverage.KEPT, **coverage._count(network, folder, {})}
    facts |= coverage._cut(network, folder, facts)
    coverage._export(network, folder, facts)
    if not (folder / "dense.onnx").exists():
        coverage._dense(coverage._open(spec), folder)
    timed = coverage._time(folder)
    return {
        "macs_kept": facts["macs"] / facts["dense_macs"],
        **timed,
        "share": timed["speedup"] * facts["macs"] / facts["dense_macs"],
    }


def main() -> int:
    """Run the rows that are open."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="glob over NETWORK/CONSTANT=VALUE")
    parser.add_argument("--list", action="store_true", help="print the rows and their state")
    args = parser.parse_args()
    rows = accuracy.load(RESULTS)
    done = {r["key"] for r in rows}
    folders: dict[str, tempfile.TemporaryDirectory[str]] = {}
    for spec, constant, value in keys():
        name = f"{spec}/{constant}={value}"
        if not fnmatch.fnmatch(name, args.only):
            continue
        if args.list:
            print(f"{'done' if name in done else 'open'}  {name}")
        elif name not in done:
            if spec not in folders:
                folders = {spec: tempfile.TemporaryDirectory()}
            rows.append({"key": name, **row(spec, constant, value, Path(folders[spec].name))})
            accuracy.save(rows, RESULTS)
            print(f"{name} {rows[-1]['share']:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
