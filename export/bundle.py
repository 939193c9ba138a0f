"""Proved ONNX files -> a folder that a device engineer can take away: files, labels, an example, scripts, checksums.

No torch. Everything in it works without EdgePrune; nothing in it names this machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune import __version__
from edgeprune import artifact as artifacts
from edgeprune.artifact import Artifact
from edgeprune.errors import DataError
from edgeprune.images import Preprocess

EXAMPLE = Path(__file__).with_name("classify_example.py")
ENGINE_EXAMPLE = Path(__file__).with_name("engine_example.py")
SUMS = "SHA256SUMS"
MANIFEST = "bundle.json"
BESIDE = (
    "labels.txt",
    "preprocessing.json",
    "classify.py",
    "run_engine.py",
    "build_engine.sh",
    "README.md",
    MANIFEST,
)


def write(folder: Path, made: Sequence[Artifact], batch: str, skipped: Mapping[str, str]) -> list[str]:
    """Add to `folder`, which holds the ONNX files of `made`, all that goes with them; return the files' names.

    batch: "1" or "1:8:32". skipped: a precision and why it is not there.
    """
    facts = made[0].meta
    names = facts.get("classes")
    if not isinstance(names, list) or "preprocess" not in facts:
        raise DataError(
            f"{made[0].path}: nothing says its classes and preprocessing; give --classes, --mean and --std"
        )
    one_line = [" ".join(str(n).split()) for n in names]
    _text(folder / "labels.txt", "\n".join(one_line) + "\n")
    _text(folder / "preprocessing.json", json.dumps(preprocessing(facts["preprocess"]), indent=2) + "\n")
    _text(folder / "classify.py", EXAMPLE.read_text(encoding="utf-8"))
    _text(folder / "run_engine.py", ENGINE_EXAMPLE.read_text(encoding="utf-8"))
    _text(folder / "build_engine.sh", script(made, batch))
    (folder / "build_engine.sh").chmod(0o755)
    _text(folder / "README.md", readme(made, skipped))
    manifest = {
        "tool_version": __version__,
        "files": {a.path.name: _summary(a) for a in made},
        "skipped": dict(skipped),
        "batch": batch,
    }
    _text(folder / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    held = sorted(p.name for p in folder.iterdir() if p.name != SUMS)
    _text(folder / SUMS, "".join(f"{artifacts.sha256(folder / name)}  {name}\n" for name in held))
    return [*held, SUMS]


def _text(path: Path, text: str) -> None:
    artifacts.write_atomically(path, text.encode())


def preprocessing(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the example needs to know: the facts, and how much the resize covers before the centre is cut out."""
    pre = Preprocess.from_json(facts)
    covered = [math.floor(n / pre.crop + 1e-6) for n in pre.size]
    layout = (
        f"uint8 {pre.layout}, normalised in the graph"
        if pre.layout
        else "(pixel / 255 - mean) / std, float32 NCHW"
    )
    return {**pre.to_json(), "covered": covered, "channels": "RGB", "input": layout}


def _summary(found: Artifact) -> dict[str, Any]:
    parity = {k: v for k, v in dict(found.meta.get("parity", {})).items() if k != "worst"}
    keys = ("precision", "macs", "params", "opset", "parents", "checkpoint", "lineage", "ends")
    return {**{k: found.meta[k] for k in keys if k in found.meta}, "parity": parity, "sha256": found.sha256}


def script(made: Sequence[Artifact], batch: str) -> str:
    """build_engine.sh: one trtexec line a file, with the flags of the release that is found on the board."""
    shapes = ""
    entry = made[0].inputs[0]
    if entry.shape and isinstance(entry.shape[0], str):
        low, best, high = (batch.split(":") * 3)[:3] if ":" not in batch else batch.split(":")
        sizes = "x".join(str(d) for d in entry.shape[1:])
        given = zip(("min", "opt", "max"), (low, best, high), strict=True)
        shapes = " ".join(f"--{word}Shapes={entry.name}:{n}x{sizes}" for word, n in given)
    lines = [
        f'build {a.path.name} {a.path.stem}.engine {a.meta.get("precision", "fp32")} "{shapes}"' for a in made
    ]
    return _SCRIPT.replace("@LINES@", "\n".join(lines))


def readme(made: Sequence[Artifact], skipped: Mapping[str, str]) -> str:
    """README.md: which file is which, how equal it is, and the commands."""
    rows = []
    for a in made:
        found = a.meta.get("parity", {})
        flips = f"{found.get('flips')} of {found.get('n')}" if found else "-"
        size = a.path.stat().st_size / 2**20
        rows.append(f"| {a.path.name} | {a.meta.get('precision', 'fp32')} | {size:.2f} MiB | {flips} |")
    missing = "".join(f"- no {word}: {why}\n" for word, why in skipped.items())
    first = made[0].path.name
    return (
        "# A classifier for the device\n\n"
        "| file | precision | size | answers that changed on the proof images |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\n{missing}\n"
        + _README.replace("@FIRST@", first).replace("@ENGINE@", f"{made[-1].path.stem}.engine")
    )


_README = """Check the files:

    sha256sum -c SHA256SUMS

Classify an image on the CPU (numpy, Pillow, onnxruntime):

    python classify.py @FIRST@ image.jpg

Build engines on the board that will run them, with the `trtexec` of its own TensorRT (8.6 to 11; an engine is not
portable to another release or GPU), then run one (numpy, Pillow, tensorrt, cuda-python):

    ./build_engine.sh
    python classify.py @ENGINE@ image.jpg

`labels.txt` holds the classes in the order of the outputs, `preprocessing.json` how an image becomes the input,
`bundle.json` where the files come from. int8 is explicit Q/DQ in the graph: no calibration table is needed.
TensorRT 8.6 reads opset 17 and older: export with `--opset 17` for it.
"""

_SCRIPT = """#!/bin/sh
# Build the engines of this folder on this board: ./build_engine.sh [fp32|fp16|int8]
# TRTEXEC names another trtexec; what stands behind -- goes to it:
#     ./build_engine.sh int8 -- --useDLACore=0 --allowGPUFallback
set -eu
cd "$(dirname "$0")"
wanted=all
case "${1:-}" in fp32 | fp16 | int8) wanted=$1; shift ;; esac
if [ "${1:-}" = -- ]; then shift; fi
trtexec=${TRTEXEC:-trtexec}
if ! command -v "$trtexec" >/dev/null 2>&1; then
    if [ -x /usr/src/tensorrt/bin/trtexec ]; then
        trtexec=/usr/src/tensorrt/bin/trtexec
    else
        echo "trtexec is not on the PATH; on a Jetson it is /usr/src/tensorrt/bin/trtexec" >&2
        exit 5
    fi
fi
help=$("$trtexec" --help 2>&1 || true)
# TensorRT 11 types every graph strongly and has no --fp16; 10 is told to; 8.6 is told which precisions it may use.
case "$help" in
    *--stronglyTyped*) typing=--stronglyTyped ;;
    *--fp16*) typing=flags ;;
    *) typing= ;;
esac

build() {
    file=$1 engine=$2 precision=$3 shapes=$4
    shift 4
    if [ "$wanted" != all ] && [ "$wanted" != "$precision" ]; then return 0; fi
    words=$typing
    if [ "$typing" = flags ]; then
        case "$precision" in
            fp16) words=--fp16 ;;
            int8) words="--int8 --fp16" ;;
            *) words= ;;
        esac
    fi
    # shellcheck disable=SC2086
    "$trtexec" --onnx="$file" --saveEngine="$engine" $words $shapes $EXTRA
}

EXTRA="$*"
@LINES@
"""
