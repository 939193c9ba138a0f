"""Energy counters of Intel and AMD processors: RAPL through Linux's powercap tree.

/sys/class/powercap/intel-rapl:N/{name,energy_uj,max_energy_range_uj} (kernel: Documentation/power/powercap), the
counter in microjoules, wrapping at the range; AMD's appear under the same names. A zone called psys is the whole
platform; else the packages are added, and parts of a package (core, uncore, dram, with two numbers) are left out.
Since Linux 5.10 only root may read the counters (CVE-2020-8694).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Zone:
    """One counter, made monotonic: joules since it was first read."""

    name: str
    file: Path
    range_uj: int
    _last: int | None = field(default=None, repr=False)
    _total: int = field(default=0, repr=False)

    def joules(self) -> float:
        """Joules since the first reading; right as long as it is read at least once a turn of the counter."""
        now = int(self.file.read_text())
        if self._last is not None:
            self._total += now - self._last if now >= self._last else now - self._last + self.range_uj
        self._last = now
        return self._total * 1e-6


class Rapl:
    """The processor as a sensor; power is the counter's slope between two readings at least 10 ms apart."""

    source = "RAPL"
    rate_hz = 10.0

    def __init__(self, zones: tuple[Zone, ...]) -> None:
        whole = tuple(z for z in zones if z.name == "psys")
        self._zones = whole or zones
        names = ", ".join(z.name for z in self._zones)
        self.rule = (
            f"zone {names} (the platform)" if whole else f"sum of {names} (processor, not the machine)"
        )
        self._all, self._lock = zones, threading.Lock()
        self._before: tuple[float, float] | None = None

    def energy_j(self) -> float:
        """Joules since the first reading; the sampling thread and the loop both ask."""
        with self._lock:
            return sum(z.joules() for z in self._zones)

    def watts(self) -> float:
        """Mean power since the last call, W; the first call waits 50 ms."""
        if self._before is None:
            self._before = time.monotonic(), self.energy_j()
            time.sleep(0.05)
        now = time.monotonic(), self.energy_j()
        seconds = now[0] - self._before[0]
        power = (now[1] - self._before[1]) / max(seconds, 1e-3)
        self._before = now
        return power

    def rails(self) -> dict[str, float]:
        """Power of every zone over 50 ms, W."""
        with self._lock:
            start = {z.name: z.joules() for z in self._all}
            began = time.monotonic()
            time.sleep(0.05)
            seconds = time.monotonic() - began
            return {z.name: (z.joules() - start[z.name]) / seconds for z in self._all}


def sensor(root: Path = Path("/")) -> tuple[Rapl | None, str]:
    """The counters under `root`, or None and why not."""
    folders = [p for p in sorted((root / "sys/class/powercap").glob("*-rapl:*")) if p.name.count(":") == 1]
    folders = [p for p in folders if "mmio" not in p.name]  # the same counters by another road
    if not folders:
        return None, "no RAPL counters (a virtual machine, or no Intel or AMD processor)"
    zones = []
    try:
        for folder in folders:
            name = (folder / "name").read_text().strip()
            span = int((folder / "max_energy_range_uj").read_text())
            zone = Zone(name, folder / "energy_uj", span)
            zone.joules()
            zones.append(zone)
    except PermissionError:
        return (
            None,
            "RAPL counters are readable by root alone: sudo chmod a+r /sys/class/powercap/*/energy_uj",
        )
    except (OSError, ValueError) as err:
        return None, f"RAPL is here but cannot be read: {err}"
    return Rapl(tuple(zones)), ""
