"""The machine a number was measured on: what is not known is None and has a reason. Nothing is changed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

from edgeprune.bench import jetson, nvml

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch", "numpy", "onnx")


def describe(root: Path = Path("/")) -> dict[str, Any]:
    """Facts as JSON values; each None among them has its sentence in `reasons`."""
    reasons: dict[str, str] = {}

    def known(key: str, value: Any, why: str) -> Any:
        if value is None:
            reasons[key] = why
        return value

    gpu, why_no_gpu = nvml.describe()
    board = _text(root / "proc/device-tree/model")
    return {
        "os": _os_name(root),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "cpu": _cpu(root),
        "memory_bytes": known("memory_bytes", _meminfo(root), "no /proc/meminfo"),
        "gpu": known("gpu", gpu, why_no_gpu),
        "board": known("board", board.strip("\0") if board else None, "no device tree (not a board)"),
        "l4t": known("l4t", jetson.release(root), "no /etc/nv_tegra_release (not a Jetson)"),
        "power_mode": known("power_mode", jetson.power_mode(root), "no nvpmodel status (not a Jetson)"),
        "governor": known("governor", _governor(root), "no cpufreq here (a virtual machine, or not Linux)"),
        "packages": _packages(),
        "reasons": reasons,
    }


def state(root: Path = Path("/")) -> dict[str, Any]:
    """What changes while it works: clocks, temperature (Celsius), load; a sensor that is not here is None."""
    frequencies = _numbers(root, "sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")
    zones = [t / 1000 for t in _numbers(root, "sys/class/thermal/thermal_zone*/temp") if 0 < t < 150_000]
    return {
        "cpu_mhz": max(frequencies) / 1000 if frequencies else None,
        "cpu_max_mhz": max(
            _numbers(root, "sys/devices/system/cpu/cpu*/cpufreq/scaling_max_freq"), default=0.0
        )
        / 1000
        or None,
        "temp_c": max(zones) if zones else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpu": nvml.state() or jetson.gpu_clock(root),
        "throttled": throttled(root),
    }


# Counters that only rise: of each core on x86 (kernel: Documentation/admin-guide/thermal), and of over-current and
# under-voltage on a Jetson (Jetson Linux Developer Guide, "OC event count").
_THROTTLES = (
    "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count",
    "sys/class/hwmon/hwmon*/oc*_event_cnt",
)


def throttled(root: Path = Path("/")) -> int | None:
    """How often the hardware slowed itself down since it started; None where nothing counts it."""
    counts = [n for pattern in _THROTTLES for n in _numbers(root, pattern)]
    return int(sum(counts)) if counts else None


class Watch:
    """Call it between rounds: it keeps the machine's state, at most every `every_s` seconds."""

    def __init__(self, every_s: float = 1.0, root: Path = Path("/")) -> None:
        self._every, self._root, self._next = every_s, root, 0.0
        self.states: list[dict[str, Any]] = []
        self()

    def __call__(self) -> None:
        """Look, unless it looked a moment ago."""
        if time.monotonic() >= self._next:
            self.states.append(state(self._root))
            self._next = time.monotonic() + self._every

    def to_json(self) -> dict[str, Any]:
        """Before, in the middle of, and after the work."""
        self._next = 0.0
        self()
        return {
            "before": self.states[0],
            "during": self.states[len(self.states) // 2],
            "after": self.states[-1],
        }

    def warnings(self) -> list[str]:
        """Sentences on floating clocks and on slowdowns seen."""
        found = []
        clocks = [s["cpu_mhz"] for s in self.states if s["cpu_mhz"]]
        if clocks and max(clocks) > 1.05 * min(clocks):
            found.append(
                f"the CPU clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz; fix the governor"
            )
        gpus = [s["gpu"] for s in self.states if s["gpu"]]
        slow = sorted({name for g in gpus for name in (g.get("slowdowns") or ())})
        if slow:
            found.append(f"the GPU was slowed down: {', '.join(slow)}")
        if any("min" in g and g["min"] != g["max"] for g in gpus):
            found.append("the GPU clock is not pinned; `sudo jetson_clocks` pins it")
        counts = [s["throttled"] for s in self.states if s.get("throttled") is not None]
        if counts and counts[-1] > counts[0]:
            found.append(f"the hardware throttled itself {counts[-1] - counts[0]} times (heat or current)")
        return found


def busy(now: dict[str, Any]) -> list[str]:
    """A sentence when more work waits than there are cores; to be asked before the first measurement, which is work."""
    cores, load = usable_cores(), now["load"]
    if load is None or load <= cores:
        return []
    return [f"the machine was busy before: load {load:.1f} on {cores} cores"]


def usable_cores() -> int:
    """Cores this process may use, which a container often makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int | None:
    """Most host memory this process ever held, in bytes; of all its runners together. None where unknown."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu(root: Path) -> dict[str, Any]:
    text = _text(root / "proc/cpuinfo") or ""
    name = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    packages = re.findall(r"^physical id\s*:\s*(\d+)$", text, re.MULTILINE)
    cores = re.findall(r"^core id\s*:\s*(\d+)$", text, re.MULTILINE)
    physical = len(set(zip(packages, cores, strict=True))) if cores and len(packages) == len(cores) else None
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "bf16")
    return {
        "name": name[1].strip() if name else platform.processor() or None,
        "logical": os.cpu_count(),
        "physical": physical,
        "usable": usable_cores(),
        "features": [f for f in wanted if flags and f in flags[1].split()],
    }


def _os_name(root: Path) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(root / "etc/os-release") or "", re.MULTILINE)
    return found[1] if found else platform.platform(terse=True)


def _meminfo(root: Path) -> int | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _governor(root: Path) -> str | None:
    names = {_text(p) for p in (root / "sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")}
    return ", ".join(sorted(n for n in names if n)) or None


def _packages() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _numbers(root: Path, pattern: str) -> list[float]:
    values = []
    for path in root.glob(pattern):
        text = _text(path)
        if text and text.lstrip("-").isdigit():
            values.append(float(text))
    return values


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
