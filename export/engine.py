"""An ONNX file -> a TensorRT or TensorRT-RTX engine: a pure plan file and a sidecar that says how to make it again.

No torch, and no TensorRT in this process: each build runs in one of its own (see build_engine.py). The plan is
what trtexec and DeepStream read; versions, GPU or capabilities, hash of the ONNX file and the rebuild command lie
in `<name>.engine.json`.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from edgeprune import __version__, errors
from edgeprune import artifact as artifacts
from edgeprune.artifact import Artifact, TensorSpec
from edgeprune.errors import DataError, MissingHere, ModelError, UsageError
from edgeprune.export import graph
from edgeprune.export import profile as profiles
from edgeprune.runtime import metadata

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
TIMEOUT_S = 7200


@dataclass(frozen=True)
class BuildOptions:
    """What decides an engine beside the graph. workspace: MiB. batch: used when the graph's batch is free."""

    to: str
    batch: str = "1"
    capabilities: tuple[str, ...] = field(default=())
    workspace: int = 2048

    def __post_init__(self) -> None:
        if self.to not in MODULES:
            raise UsageError(f"--to {self.to}: expected onnx, {', '.join(MODULES)}")
        if self.capabilities and self.to != "tensorrt-rtx":
            raise UsageError(
                "--compute-capability is for --to tensorrt-rtx; tensorrt builds for the GPU it runs on"
            )
        if self.workspace < 1:
            raise UsageError(f"--workspace {self.workspace}: expected MiB, 1 or more")
        profiles.parse(self.batch)

    def command(self, source: Path) -> str:
        """The words that build this engine again, in the folder of the ONNX file."""
        words = ["edgeprune", "export", source.name, "--to", self.to, "--batch", self.batch]
        if self.capabilities:
            words += ["--compute-capability", ",".join(self.capabilities)]
        words += ["--workspace", str(self.workspace), "--force"]
        return shlex.join(words)


def capabilities(text: str | None) -> tuple[str, ...]:
    """ "8.6,8.9" -> ("8.6", "8.9"); UsageError says what was received."""
    found = tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
    if (text is not None and not found) or any(not re.fullmatch(r"\d{1,2}\.\d", part) for part in found):
        raise UsageError(f"--compute-capability {text}: expected numbers such as 8.6,8.9,12.0")
    return found


def build(source: Path, path: Path, options: BuildOptions) -> Artifact:
    """Build the ONNX file `source` into the plan `path` and its sidecar.

    MissingHere with the pip command when the package is not installed; DataError for a file that is not whole
    ONNX; ModelError names an operator that the library does not take.
    """
    if path.suffix not in (".engine", ".plan"):
        raise UsageError(f"{path}: expected a name that ends in .engine")
    facts = _facts(source)
    profile = profiles.parse(options.batch)
    precision = str(facts.get("precision", "fp32"))
    with graph.scratch(path) as folder:
        made = folder / "made.engine"
        request = {
            "module": MODULES[options.to],
            "onnx": str(source.resolve()),
            "output": str(made),
            "precision": precision,
            "profile": [profile.lowest, profile.best, profile.highest],
            "capabilities": list(options.capabilities),
            "workspace": options.workspace,
        }
        start = time.perf_counter()
        answer = _ask(request, options.to)
        seconds = time.perf_counter() - start
        graph.move(made, path)
    target = ", ".join(options.capabilities) if options.capabilities else str(answer.pop("gpu", ""))
    sha = artifacts.sha256(source)
    free = any(isinstance(t["shape"][0], str) for t in answer["inputs"] if t["shape"])
    engine = {
        "runtime": options.to,
        **{k: v for k, v in answer.items() if k not in ("inputs", "outputs", "gpu")},
        "profile": str(profile) if free else None,
        "capabilities": list(options.capabilities),
        "workspace_mib": options.workspace,
        "onnx": {"file": source.name, "sha256": sha},
        "build_s": round(seconds, 2),
        "rebuild": options.command(source),
    }
    inputs, outputs = (tuple(_spec(t) for t in answer[key]) for key in ("inputs", "outputs"))
    meta = {**facts, "precision": precision, "engine": engine, "parents": [sha], "tool_version": __version__}
    built = Artifact(path, "engine", artifacts.sha256(path), inputs, outputs, (sha,), target, meta)
    built.write_sidecar()
    return built


def _spec(tensor: dict[str, Any]) -> TensorSpec:
    return TensorSpec(tensor["name"], tuple(tensor["shape"]), tensor["dtype"])


def _facts(source: Path) -> dict[str, Any]:
    """What the ONNX file says of itself; DataError in one line when it is truncated or not ONNX."""
    if not source.is_file():
        raise DataError(f"{source}: no such file; expected an ONNX file")
    try:
        model = onnx.load(source, load_external_data=False)
        if not model.graph.node:
            raise ValueError("it holds no operator")
        for data in {
            e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"
        }:
            if not (source.parent / data).is_file():
                raise ValueError(f"its weights {data} are not beside it")
    except Exception as err:
        why = (str(err).strip().splitlines() or [type(err).__name__])[0][:160]
        raise DataError(f"{source}: not a whole ONNX file ({why}); export it again") from err
    found = metadata.from_props({p.key: p.value for p in model.metadata_props})
    found |= {k: v for k, v in artifacts.read(source).meta.items() if k not in ("also_tried", "data")}
    if "precision" not in found:
        kinds = {n.op_type for n in model.graph.node}
        half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
        found["precision"] = "int8" if "QuantizeLinear" in kinds else "fp16" if half else "fp32"
    return found


def _ask(request: dict[str, Any], word: str) -> dict[str, Any]:
    """Run the build in its own process and raise what it raised."""
    command: Sequence[str] = (sys.executable, "-m", "edgeprune.export.build_engine")
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as err:
        raise ModelError(f"--to {word}: the build took more than {TIMEOUT_S // 3600} hours") from err
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        answer = json.loads(last)
    except ValueError:
        why = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1][:200]
        raise MissingHere(f"--to {word}: the builder ended with code {done.returncode}: {why}") from None
    if "ok" in answer:
        made: dict[str, Any] = answer["ok"]
        return made
    kind = getattr(errors, str(answer["kind"]), ModelError)
    raise kind(str(answer["error"]))
