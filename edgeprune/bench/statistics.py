"""What a column of latencies says: percentiles first, the mean never alone.

Percentiles are numpy's linear interpolation on the sorted samples. A percentile that too few samples stand
behind is None: p99 from 100 samples on, p99.9 from 10 000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeprune.errors import DataError


@dataclass(frozen=True)
class Latency:
    """Milliseconds, except cov = std / mean and n. None: too few samples, or not told by the tool that measured."""

    n: int | None
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    p999: float | None
    min: float
    max: float
    mean: float
    std: float | None
    cov: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Latency:
        """Read what `to_json` wrote."""
        return Latency(**data)


def summary(latency_s: ArrayLike) -> Latency:
    """Summarise latencies given in seconds, shape (n,), n >= 1; std has n - 1 below, 0 for one."""
    ms = np.asarray(latency_s, np.float64) * 1e3
    if ms.ndim != 1 or not ms.size or not np.isfinite(ms).all():
        raise DataError(
            f"latencies of shape {ms.shape}: expected one dimension, at least one value, all finite"
        )
    p50, p90, p95, p99, p999 = (float(p) for p in np.percentile(ms, [50, 90, 95, 99, 99.9]))
    mean, std = float(ms.mean()), float(ms.std(ddof=1)) if ms.size > 1 else 0.0
    return Latency(
        n=int(ms.size),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99 if ms.size >= 100 else None,
        p999=p999 if ms.size >= 10_000 else None,
        min=float(ms.min()),
        max=float(ms.max()),
        mean=mean,
        std=std,
        cov=std / mean if mean > 0 else 0.0,
    )


def throughput(latency: Latency, batch: int) -> float:
    """Images a second of a closed loop of one: batch over the mean latency."""
    return batch / (latency.mean * 1e-3)


def spread(values: ArrayLike) -> float:
    """Width of the middle half of values (n,), over their median."""
    low, middle, high = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75])
    return float((high - low) / middle)


def bootstrap_medians(
    times: NDArray[np.float64], rounds: NDArray[np.int64], draws: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Medians of `times` (n,) when whole rounds are drawn again -> (B,).

    draws (B, R): how often each round counts. The lower weighted median; sorted once, a draw only changes
    weights.
    """
    order = np.argsort(times, kind="stable")
    ordered, owner = times[order], rounds[order]
    medians = np.empty(len(draws))
    for i, weight in enumerate(draws):
        passed = np.cumsum(weight[owner])
        medians[i] = ordered[np.searchsorted(passed, (passed[-1] + 1) // 2)]
    return medians


def draw_rounds(rounds: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each round is drawn: (resamples, rounds), rows sum to at least `rounds`.

    Circular block bootstrap (Politis and Romano 1992) with blocks of rounds^(1/3): neighbouring rounds
    share the machine's mood, so they are drawn together.
    """
    length = max(1, round(rounds ** (1 / 3)))
    random = np.random.default_rng(seed)
    starts = random.integers(0, rounds, (resamples, -(-rounds // length)))
    picked = (starts[:, :, None] + np.arange(length)).reshape(resamples, -1) % rounds
    counts = np.zeros((resamples, rounds), np.int64)
    np.add.at(counts, (np.arange(resamples)[:, None], picked), 1)
    return counts
