"""The NVIDIA card of a desktop or server through nvidia-ml-py; each value is probed, not assumed.

Power is a one-second average on Ampere and later, so energy comes from the counter (Volta and later) where
there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BAD_THROTTLES = {
    "SwThermalSlowdown": 0x20,
    "HwThermalSlowdown": 0x40,
    "HwSlowdown": 0x08,
    "HwPowerBrakeSlowdown": 0x80,
}
"""Reasons, of nvml.h, that spoil a measurement; a power cap is normal, and an idle clock too."""


def _card() -> tuple[Any, Any, str]:
    """(pynvml, handle of card 0, "") or (None, None, why not)."""
    try:
        import pynvml
    except ImportError:
        return None, None, "NVML: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0), ""
    except pynvml.NVMLError as err:
        return None, None, f"NVML: {err}"


class NvmlSensor:
    """Power of one card."""

    source = "NVML"
    rate_hz = 20.0
    rule = "the card (GPU and its memory), not the machine"

    def __init__(self, library: Any, handle: Any, counter: bool) -> None:
        self._library, self._handle, self._counter = library, handle, counter

    def watts(self) -> float:
        """Power now, W; a one-second average on Ampere and later."""
        return float(self._library.nvmlDeviceGetPowerUsage(self._handle)) * 1e-3

    def rails(self) -> dict[str, float]:
        """The card is one rail."""
        return {"card": self.watts()}

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded; None before Volta."""
        if not self._counter:
            return None
        return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * 1e-3


def sensor() -> tuple[NvmlSensor | None, str]:
    """The card's power sensor, or None and why not."""
    library, handle, why = _card()
    if library is None:
        return None, why
    try:
        library.nvmlDeviceGetPowerUsage(handle)
    except library.NVMLError as err:
        return None, f"NVML: power: {err}"
    try:
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError:
        return NvmlSensor(library, handle, False), ""
    return NvmlSensor(library, handle, True), ""


def describe() -> tuple[dict[str, Any] | None, str]:
    """Name, compute capability, driver and memory of card 0, or None and why not."""
    library, handle, why = _card()
    if library is None:
        return None, why

    def ask(function: str, *arguments: Any) -> Any:
        try:
            return getattr(library, function)(handle, *arguments)
        except (library.NVMLError, AttributeError):
            return None

    capability, memory = ask("nvmlDeviceGetCudaComputeCapability"), ask("nvmlDeviceGetMemoryInfo")
    return {
        "name": ask("nvmlDeviceGetName"),
        "sm": ".".join(map(str, capability)) if capability else None,
        "driver": library.nvmlSystemGetDriverVersion(),
        "memory_bytes": int(memory.total) if memory else None,
    }, ""


def state() -> dict[str, Any] | None:
    """Clocks (MHz), temperature (Celsius) and the slowdowns that are active now; None without a card."""
    library, handle, _ = _card()
    if library is None:
        return None
    found: dict[str, Any] = {}
    asked: dict[str, Callable[[], Any]] = {
        "sm_mhz": lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM),
        "memory_mhz": lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM),
        "temp_c": lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU),
        "slowdowns": lambda: _slowdowns(library.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
    }
    for key, ask in asked.items():
        try:
            found[key] = ask()
        except (library.NVMLError, AttributeError):
            found[key] = None
    return found


def _slowdowns(bits: int) -> list[str]:
    return [name for name, bit in BAD_THROTTLES.items() if bits & bit]
