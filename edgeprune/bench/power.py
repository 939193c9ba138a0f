"""Power and energy of this board while it works: read, never guessed. No sensor is None and a reason.

Energy per image, gross = E / images, net = (E - idle power * time) / images, where E is the sensor's own
counter between the two ends of the loop, or else the trapezoid over its samples. Sampling runs in a thread
of its own and therefore apart from the latency measurement, never within it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.bench import jetson, nvml, rapl


class Sensor(Protocol):
    """source: the sensor; rule: what the total is made of; energy_j: a counter, None when it has none."""

    source: str
    rule: str
    rate_hz: float

    def watts(self) -> float:
        """Power now, W."""
        ...

    def rails(self) -> dict[str, float]:
        """Power of each rail, W."""
        ...

    def energy_j(self) -> float | None:
        """A counter of joules since some time before, or None."""
        ...


def find(root: Path = Path("/"), device: str = "cuda") -> tuple[Sensor | None, str]:
    """The sensor that sees the device at work, or None and why there is none.

    A Jetson's rails carry CPU and GPU alike. Elsewhere the card's own meter (NVML) is for work on "cuda", and the
    processor's counters (RAPL) for work on "cpu": neither stands in for the other.
    """
    board, why_not_jetson = jetson.sensor(root)
    if board is not None:
        return board, ""
    found: tuple[Sensor | None, str] = rapl.sensor(root) if device == "cpu" else nvml.sensor()
    return (found[0], "") if found[0] is not None else (None, f"{why_not_jetson}; {found[1]}")


@dataclass(frozen=True)
class Power:
    """W and mJ per image. method: "counter" or "trapezoid". samples were taken during the load."""

    source: str
    rule: str
    method: str
    idle_w: float
    mean_w: float
    max_w: float
    gross_mj: float
    net_mj: float
    samples: int
    rate_hz: float

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


def energy(
    sensor: Sensor,
    infer: Callable[[], object],
    *,
    batch: int,
    load_s: float = 10.0,
    idle_s: float = 5.0,
    rest_s: float = 2.0,
) -> Power:
    """Rest, sample idle power, then call `infer` (`batch` images a call) for at least `load_s` seconds."""
    time.sleep(rest_s)
    _, idle = _sample(sensor, lambda: time.sleep(idle_s))
    calls, marks, counters = 0, [0.0, 0.0], [sensor.energy_j(), None]

    def load() -> None:
        nonlocal calls
        counters[0], marks[0] = sensor.energy_j(), time.monotonic()
        while calls == 0 or time.monotonic() - marks[0] < load_s:
            infer()
            calls += 1
        marks[1], counters[1] = time.monotonic(), sensor.energy_j()

    times, watts = _sample(sensor, load)
    seconds = marks[1] - marks[0]
    counted = counters[1] - counters[0] if counters[0] is not None and counters[1] is not None else None
    joules = counted if counted is not None else integrate(times, watts, marks[0], marks[1])
    idle_w, images = float(np.median(idle)), calls * batch
    return Power(
        source=sensor.source,
        rule=sensor.rule,
        method="trapezoid" if counted is None else "counter",
        idle_w=idle_w,
        mean_w=joules / seconds,
        max_w=float(watts.max()),
        gross_mj=joules / images * 1e3,
        net_mj=(joules - idle_w * seconds) / images * 1e3,
        samples=len(watts),
        rate_hz=len(watts) / seconds,
    )


def integrate(times: NDArray[np.float64], watts: NDArray[np.float64], start: float, end: float) -> float:
    """Joules between `start` and `end` (s) of power samples (n,): trapezoid, interpolated at both ends."""
    inside = (times > start) & (times < end)
    edges = np.interp([start, end], times, watts)
    t = np.concatenate([[start], times[inside], [end]])
    w = np.concatenate([edges[:1], watts[inside], edges[1:]])
    return float(np.sum((w[1:] + w[:-1]) / 2 * np.diff(t)))  # np.trapezoid is new in numpy 2


def _sample(sensor: Sensor, work: Callable[[], None]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Run `work` while a thread samples; a sample is stamped midway through its reading."""
    times: list[float] = []
    watts: list[float] = []
    stop = threading.Event()
    failed: list[Exception] = []

    def loop() -> None:
        try:
            while True:
                begin = time.monotonic()
                watts.append(sensor.watts())
                times.append((begin + time.monotonic()) / 2)
                if stop.wait(1 / sensor.rate_hz):
                    return
        except Exception as err:
            failed.append(err)

    thread = threading.Thread(target=loop, name="edgeprune-power", daemon=True)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
    return np.asarray(times), np.asarray(watts)
