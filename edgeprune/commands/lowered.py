"""What `edgeprune export` says of fp16 and int8 files: one report of all parity steps, and which is faster here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import artifact
from edgeprune.bench import inputs
from edgeprune.bench.compare import compare
from edgeprune.bench.measure import measure
from edgeprune.runtime import ort


def write(path: Path, source: Path, made: Sequence[Path], names: Sequence[str]) -> None:
    """Write the parity of `source` and of each file made from it: per step, per image, the ten worst by name."""
    first = artifact.read(source)
    steps: list[dict[str, Any]] = [{"step": "network -> fp32", "file": source.name, **_facts(first)}]
    for file in made:
        found = artifact.read(file)
        side = file.with_name(file.name + ".parity.json")
        parity = json.loads(side.read_text())
        precision = str(found.meta["precision"])
        steps.append({"step": f"fp32 -> {precision}", "file": file.name, **_facts(found), "parity": parity})
    document = {"version": 1, "images": list(names), "steps": steps}
    artifact.write_atomically(path, json.dumps(document, indent=1).encode() + b"\n")


def _facts(found: artifact.Artifact) -> dict[str, Any]:
    return {"sha256": found.sha256, "parents": list(found.parents), "parity": found.meta.get("parity")}


def recommend(source: Path, lowered: Path, *, threads: int = 1, seconds: float = 1.0) -> dict[str, Any]:
    """Measure the float32 and the int8 file interleaved on this CPU, batch as exported or 1, and say which is faster.

    Where neither is, the float32 file is taken: it is the more exact one.
    """
    with ort.open(source, threads=threads) as first, ort.open(lowered, threads=threads) as second:
        runners = {"fp32": first, "int8": second}
        size = first.inputs[0].shape[0]
        feeds = {
            name: inputs.synthetic(r.inputs, batch=size if isinstance(size, int) else 1)
            for name, r in runners.items()
        }
        samples = measure(runners, feeds, warmup_s=min(0.5, seconds), min_s=seconds, min_runs=20)
    verdict = compare(samples["fp32"], samples["int8"], vs="fp32")
    times = {f"{name}_ms": round(1e3 * float(np.median(s.latency_s)), 3) for name, s in samples.items()}
    return {
        "take": "int8" if verdict.word == "faster" else "fp32",
        "int8_is": str(verdict),
        **times,
        "device": "this CPU, ONNX Runtime",
        "threads": threads,
    }
