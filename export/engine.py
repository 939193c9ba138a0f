"""An ONNX file -> a TensorRT or TensorRT-RTX engine: a pure plan file and a sidecar that says how to make it again.

No torch, and no TensorRT in this process: each build runs in one of its own (see build_engine.py). The plan is
what trtexec and DeepStream read; versions, GPU or capabilities, hash of the ONNX file and the rebuild command lie
in `<name>.engine.json`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from edgeprune import __version__, errors, progress
from edgeprune import artifact as artifacts
from edgeprune.artifact import Artifact, TensorSpec
from edgeprune.errors import MissingHere, ModelError, UsageError
from edgeprune.export import graph, reading
from edgeprune.export import profile as profiles
from edgeprune.runtime import metadata

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
COMPATIBLE = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
TIMEOUT_S = 7200
PROGRESS = "progress "
ANY_RTX = "compute capability 8.0 and later"
"""What TensorRT-RTX builds for when nothing else is said."""


@dataclass(frozen=True)
class BuildOptions:
    """What decides an engine beside the graph. workspace: MiB. batch: used when the graph's batch is free.

    optimization_level: 0 to 5, None is the library's own. The rest is for `tensorrt` alone: timing_cache is a folder,
    hardware_compatible "ampere+" or "same-capability", dla a core's number.
    """

    to: str
    batch: str = "1"
    capabilities: tuple[str, ...] = field(default=())
    workspace: int = 2048
    optimization_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: str | None = None
    dla: int | None = None

    def __post_init__(self) -> None:
        if self.to not in MODULES:
            raise UsageError(f"--to {self.to}: expected onnx, {', '.join(MODULES)}")
        if self.capabilities and self.to != "tensorrt-rtx":
            raise UsageError(
                "--compute-capability is for --to tensorrt-rtx; tensorrt builds for the GPU it runs on"
            )
        if self.workspace < 1:
            raise UsageError(f"--workspace {self.workspace}: expected MiB, 1 or more")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"--optimization-level {self.optimization_level}: expected 0 to 5")
        if self.hardware_compatible not in (None, *COMPATIBLE):
            raise UsageError(
                f"--hardware-compatible {self.hardware_compatible}: expected {' or '.join(COMPATIBLE)}"
            )
        if self.dla is not None and self.dla < 0:
            raise UsageError(f"--dla {self.dla}: expected the number of a core, 0 or more")
        if self.to == "tensorrt-rtx" and (word := self._classic_only()):
            raise UsageError(f"{word} is for --to tensorrt; tensorrt-rtx has none of it")
        profiles.parse(self.batch)

    def _classic_only(self) -> str:
        """The first option given that TensorRT-RTX does not have."""
        given = {
            "--timing-cache": self.timing_cache is not None,
            "--version-compatible": self.version_compatible,
            "--hardware-compatible": self.hardware_compatible is not None,
            "--dla": self.dla is not None,
        }
        return next((word for word, there in given.items() if there), "")

    def command(self, source: Path) -> str:
        """The words that build this engine again, in the folder of the ONNX file."""
        words = ["edgeprune", "export", source.name, "--to", self.to, "--batch", self.batch]
        if self.capabilities:
            words += ["--compute-capability", ",".join(self.capabilities)]
        words += ["--workspace", str(self.workspace)]
        if self.optimization_level is not None:
            words += ["--optimization-level", str(self.optimization_level)]
        words += ["--timing-cache", str(self.timing_cache)] if self.timing_cache else []
        words += ["--version-compatible"] if self.version_compatible else []
        words += ["--hardware-compatible", self.hardware_compatible] if self.hardware_compatible else []
        words += ["--dla", str(self.dla)] if self.dla is not None else []
        return shlex.join([*words, "--force"])

    def request(self) -> dict[str, Any]:
        """The same for the building process: JSON values."""
        profile = profiles.parse(self.batch)
        return {
            "module": MODULES[self.to],
            "profile": [profile.lowest, profile.best, profile.highest],
            "capabilities": list(self.capabilities),
            "workspace": self.workspace,
            "optimization_level": self.optimization_level,
            "timing_cache": str(self.timing_cache.resolve()) if self.timing_cache else None,
            "version_compatible": self.version_compatible,
            "hardware_compatible": COMPATIBLE[self.hardware_compatible] if self.hardware_compatible else None,
            "dla": self.dla,
        }


def capabilities(text: str | None) -> tuple[str, ...]:
    """ "8.6,8.9" -> ("8.6", "8.9"); UsageError says what was received."""
    found = tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
    if (text is not None and not found) or any(not re.fullmatch(r"\d{1,2}\.\d", part) for part in found):
        raise UsageError(f"--compute-capability {text}: expected numbers such as 8.6,8.9,12.0")
    return found


def build(source: Path, path: Path, options: BuildOptions) -> Artifact:
    """Build the ONNX file `source` into the plan `path` and its sidecar.

    MissingHere with the pip command when the package is not installed, or with the operator and its layer that the
    library does not take; UsageError when the batch is not the graph's; else errors of reading.whole.
    """
    if path.suffix not in (".engine", ".plan"):
        raise UsageError(f"{path}: expected a name that ends in .engine")
    facts = _facts(source)
    profile = profiles.parse(options.batch)
    precision = str(facts.get("precision", "fp32"))
    with graph.scratch(path) as folder:
        made = folder / "made.engine"
        request = {
            **options.request(),
            "onnx": str(source.resolve()),
            "output": str(made),
            "precision": precision,
        }
        start = time.perf_counter()
        answer = _ask(request, options.to)
        seconds = time.perf_counter() - start
        graph.move(made, path)
    target = ", ".join(options.capabilities) or str(answer.get("gpu") or "")
    if not target and options.to == "tensorrt-rtx":
        target = ANY_RTX
    sha = artifacts.sha256(source)
    free = any(isinstance(t["shape"][0], str) for t in answer["inputs"] if t["shape"])
    engine = {
        "runtime": options.to,
        **{k: v for k, v in answer.items() if k not in ("inputs", "outputs", "gpu")},
        "profile": str(profile) if free else None,
        "capabilities": list(options.capabilities),
        "workspace_mib": options.workspace,
        "optimization_level": options.optimization_level,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "dla": options.dla,
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
    """What the ONNX file says of itself; errors as of reading.whole."""
    model = reading.whole(source, foreign=True)
    found = metadata.from_props({p.key: p.value for p in model.metadata_props})
    found |= {k: v for k, v in artifacts.read(source).meta.items() if k not in ("also_tried", "data")}
    if "precision" not in found:
        kinds = {n.op_type for n in model.graph.node}
        half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
        found["precision"] = "int8" if "QuantizeLinear" in kinds else "fp16" if half else "fp32"
    return found


def _ask(request: dict[str, Any], word: str) -> dict[str, Any]:
    """Run the build in its own process, show how far it is, and raise what it raised."""
    command: Sequence[str] = (sys.executable, "-m", "edgeprune.export.build_engine")
    with tempfile.TemporaryFile("w+") as errors_told:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors_told, text=True
        )
        limit = threading.Timer(TIMEOUT_S, process.kill)
        limit.start()
        try:
            last = _listen(process, json.dumps(request), f"build {word}")
            code = process.wait()
        finally:
            late = not limit.is_alive()
            limit.cancel()
            process.kill()
        errors_told.seek(0)
        told = errors_told.read()
    if late:
        raise ModelError(f"--to {word}: the build took more than {TIMEOUT_S // 3600} hours")
    try:
        answer = json.loads(last)
    except ValueError:
        why = (told.strip().splitlines() or ["nothing on stderr"])[-1][:200]
        raise MissingHere(f"--to {word}: the builder ended with code {code}: {why}") from None
    if "ok" in answer:
        made: dict[str, Any] = answer["ok"]
        return made
    kind = getattr(errors, str(answer["kind"]), ModelError)
    raise kind(str(answer["error"]))


def _listen(process: subprocess.Popen[str], request: str, name: str) -> str:
    """Hand the request over and return the last line of the answer; lines on the way are steps done of 100."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(request)
        process.stdin.close()
    last, done = "", 0
    with progress.bar(name, total=100) as tick:
        for line in process.stdout:
            if line.startswith(PROGRESS):
                share, _, phase = line.removeprefix(PROGRESS).strip().partition(" ")
                tick(int(share) - done, phase=phase)
                done = int(share)
            elif line.strip():
                last = line.strip()
        tick(100 - done)
    return last
