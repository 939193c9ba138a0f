"""What classic TensorRT can be told beyond the graph: other releases and GPUs, DLA cores, a timing cache.

None of it is in TensorRT-RTX, and none of it has been run: there was no classic TensorRT on a GPU to run it with.
The calls are those of the published releases (tests/runtime/tensorrt_names.json).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from edgeprune.errors import ModelError, RunError, UsageError
from edgeprune.runtime.trt import Builder, BuilderConfig


def compatibility(trt: Any, config: BuilderConfig, request: dict[str, Any]) -> None:
    """Let later releases, or other GPUs, load the engine; UsageError where this release cannot."""
    if request["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    word = request["hardware_compatible"]
    if not word:
        return
    level = getattr(trt.HardwareCompatibilityLevel, word, None)
    if level is None:
        raise UsageError(
            f"--hardware-compatible same-capability: tensorrt {trt.__version__} has it not; it came with 10.13"
        )
    config.hardware_compatibility_level = level


def dla(trt: Any, builder: Builder, config: BuilderConfig, core: int | None) -> None:
    """Put every layer that can on a DLA core, the rest on the GPU; UsageError where there is no such core."""
    if core is None:
        return
    if core >= builder.num_DLA_cores:
        raise UsageError(f"--dla {core}: this machine has {builder.num_DLA_cores} DLA cores, counted from 0")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def timing_cache(trt: Any, config: BuilderConfig, folder: str | None, gpu: str) -> Path | None:
    """Take over earlier timings; return the file to keep them in, named by the release and GPU they hold for."""
    if folder is None:
        return None
    words = re.sub(r"[^\w.]+", "-", f"tensorrt-{trt.__version__}-{gpu or 'gpu'}").strip("-")
    file = Path(folder) / f"{words}.timing"
    try:
        held = file.read_bytes() if file.is_file() else b""
    except OSError as err:
        raise RunError(f"--timing-cache {file}: cannot be read ({err.strerror})") from err
    if not config.set_timing_cache(config.create_timing_cache(held), ignore_mismatch=False):
        raise ModelError(
            f"--timing-cache {file}: tensorrt {trt.__version__} refuses it; delete it to start afresh"
        )
    return file


def keep(config: BuilderConfig, file: Path | None) -> None:
    """Write the timings of this build, whole or not at all."""
    if file is None:
        return
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(bytes(config.get_timing_cache().serialize()))
        os.replace(part, file)
    except OSError as err:
        raise RunError(f"--timing-cache {file}: cannot be written ({err.strerror})") from err
