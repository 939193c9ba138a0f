"""Facts of a Jetson board from its files: release, mode, GPU clock, power rails. Nothing is changed.

Every function takes the root of the file tree, so the documented layouts are tested without a board. Power:
L4T's ina3221 driver, `in{N}_label`, `in{N}_input` (mV), `curr{N}_input` (mA) under hwmon; on JetPack 4
`rail_name_{N}` and `in_power{N}_input` (mW) under iio; Thor adds an INA238, in microwatts, for all.
NVML answers NotSupported for power on Orin.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that carry the whole board; the others are parts of them and must not be added."""


@dataclass(frozen=True)
class Rail:
    """One channel: power in W is the product of what the files hold, times `scale`."""

    label: str
    files: tuple[Path, ...]
    scale: float

    def watts(self) -> float:
        """Power now, W."""
        return math.prod(_number(f) for f in self.files) * self.scale


class Ina3221:
    """The board's power rails. `rule` says what the total is made of."""

    source = "INA3221"
    rate_hz = 50.0

    def __init__(self, rails: tuple[Rail, ...]) -> None:
        self._rails = rails
        names = [r.label for r in rails]
        total = next((t for t in TOTALS if t in names), None)
        self._summed = tuple(r for r in rails if r.label == total) if total else rails
        self.rule = (
            f"rail {total}" if total else f"sum of {', '.join(names)} (the module, not the carrier board)"
        )

    def watts(self) -> float:
        """Power of the whole now, W."""
        return sum(r.watts() for r in self._summed)

    def rails(self) -> dict[str, float]:
        """Power of every rail now, W."""
        return {r.label: r.watts() for r in self._rails}

    def energy_j(self) -> None:
        """The chip has no counter."""
        return


def sensor(root: Path = Path("/")) -> tuple[Ina3221 | None, str]:
    """The INA3221 rails under `root`, or None and why not."""
    rails: list[Rail] = []
    for chip in sorted((root / "sys/bus/i2c/devices").glob("*")):
        name = _text(chip / "name")
        if name is not None and "ina3221" in name:
            rails += _hwmon(chip) or _iio(chip)
        if name is not None and "ina238" in name:
            rails += [Rail("VIN", (file,), 1e-6) for file in chip.glob("hwmon/hwmon*/power1_input")]
    if not rails:
        return None, "no INA3221 power monitor (not a Jetson)"
    try:
        _ = [r.watts() for r in rails]
    except (OSError, ValueError) as err:
        return None, f"INA3221 is here but cannot be read: {err}"
    return Ina3221(tuple(rails)), ""


def _hwmon(chip: Path) -> list[Rail]:
    found = []
    for label_file in sorted(chip.glob("hwmon/hwmon*/in*_label")):
        number = re.fullmatch(r"in(\d+)_label", label_file.name)
        label = _text(label_file)
        # Channel 7 is the sum of the shunt voltages; NC is not connected.
        if number is None or label is None or "NC" in label or number[1] == "7":
            continue
        volt, amp = (
            label_file.with_name(f"in{number[1]}_input"),
            label_file.with_name(f"curr{number[1]}_input"),
        )
        if volt.is_file() and amp.is_file():
            found.append(Rail(label, (volt, amp), 1e-6))
    return found


def _iio(chip: Path) -> list[Rail]:
    found = []
    for label_file in sorted(chip.glob("iio:device*/rail_name_*")):
        label = _text(label_file)
        power = label_file.with_name(f"in_power{label_file.name.rpartition('_')[2]}_input")
        if label is not None and "NC" not in label and power.is_file():
            found.append(Rail(label, (power,), 1e-3))
    return found


def release(root: Path = Path("/")) -> str | None:
    """The L4T release, such as "36.4.3"; None when this is no Jetson."""
    text = _text(root / "etc/nv_tegra_release")
    found = re.search(r"R(\d+)\D.*?REVISION:\s*([\d.]+)", text) if text else None
    return f"{found[1]}.{found[2]}" if found else None


def power_mode(root: Path = Path("/")) -> str | None:
    """The nvpmodel mode that is set, by its number, such as "pmode:0000"; None when there is none."""
    return _text(root / "var/lib/nvpmodel/status")


def gpu_clock(root: Path = Path("/")) -> dict[str, int] | None:
    """Current, lowest and highest GPU clock in Hz; pinned when lowest equals highest. None when unknown."""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if not (folder.name.endswith((".gpu", ".ga10b", ".gv11b", ".gp10b")) or folder.name == "gpu-gpc-0"):
            continue
        try:
            return {key: int(_number(folder / f"{key}_freq")) for key in ("cur", "min", "max")}
        except (OSError, ValueError):
            continue
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip().strip("\0")
    except OSError:
        return None


def _number(path: Path) -> float:
    return float(path.read_text())
