"""Times several runners fairly on one machine: the same minutes, the same noise, the same caches.

Warm-up goes on until two windows agree. Then rounds: in each round every runner runs one block of calls, in
an order drawn anew, so that a slow minute of the machine falls on all of them; `Samples.round` keeps which
block a time belongs to, and the interval of edgeprune.bench.compare is drawn from whole rounds. The first
call of a block finds the caches full of another network and is not recorded. Between the two clock readings
of a sample stands one call of `Runner.infer` and nothing else.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import UsageError
from edgeprune.runtime.runner import Feeds, Runner

BLOCK_S = 0.03
WINDOW_AGREEMENT = 0.02
MOST_WARMUP = 5.0  # times warmup_s, then measuring starts and `settled` is False
FEWEST_ROUNDS = 20


@dataclass(frozen=True)
class Samples:
    """Times of one runner. latency_s: (n,) seconds; round: (n,) the round of each, increasing from 0.

    settled: whether two warm-up windows agreed within 2%. warmup_s, warmup_runs: what the warm-up took.
    parts_s: what a latency is made of, each (n,). rate: (rounds,) calls a second of all streams together, where
    several ran. facts: what a mode adds, as JSON values. waited: share of the measured time, in 0..1, in which the
    calling thread did not run; for a device or other threads, where they did the work, else because it had to.
    """

    latency_s: NDArray[np.float64]
    round: NDArray[np.int64]
    settled: bool = True
    warmup_s: float = 0.0
    warmup_runs: int = 0
    parts_s: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    rate: NDArray[np.float64] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    waited: float | None = None

    @property
    def rounds(self) -> int:
        """How many rounds there were."""
        return int(self.round[-1]) + 1 if len(self.round) else 0

    def per_round(self) -> NDArray[np.float64]:
        """Median seconds of each round, (rounds,)."""
        edges = np.searchsorted(self.round, np.arange(1, self.rounds))
        return np.asarray([np.median(part) for part in np.split(self.latency_s, edges)])

    def for_comparing(self) -> Samples:
        """What a verdict is drawn from: the latencies, or seconds a call at full load where several streams ran."""
        if self.rate is None:
            return self
        return Samples(1 / self.rate, np.arange(len(self.rate)))


def measure(
    runners: Mapping[str, Runner],
    feeds: Mapping[str, Feeds],
    *,
    warmup_s: float = 1.0,
    min_s: float = 3.0,
    min_runs: int = 200,
    seed: int = 0,
    observe: Callable[[], object] | None = None,
) -> dict[str, Samples]:
    """Measure every runner of `runners`, interleaved, on `feeds[name]`.

    Each gets at least `min_s` seconds of recorded calls, `min_runs` of them, in at least 20 rounds.
    `observe` is called after each round, outside the timed part (clocks, temperature). UsageError when a
    runner has no feeds.
    """
    if not runners or min_runs < 1 or min_s < 0 or warmup_s < 0:
        raise UsageError(
            f"nothing to measure: {len(runners)} runners, {min_runs} runs, {min_s} s; expected one at least"
        )
    if missing := sorted(set(runners) - set(feeds)):
        raise UsageError(
            f"no input for {', '.join(missing)}; feeds holds {', '.join(sorted(feeds)) or 'nothing'}"
        )
    with quiet():
        warm = {name: warm_up(runner, feeds[name], warmup_s) for name, runner in runners.items()}
        sizes = {name: _block_size(w.typical_s, min_s, min_runs) for name, w in warm.items()}
        blocks: dict[str, list[NDArray[np.float64]]] = {name: [] for name in runners}
        parts: dict[str, list[Mapping[str, float]]] = {name: [] for name in runners}
        spent, ran = dict.fromkeys(runners, 0.0), dict.fromkeys(runners, 0.0)
        order, random, rounds = list(runners), np.random.default_rng(seed), 0
        fewest = FEWEST_ROUNDS if min_s > 0 else 1
        while rounds < fewest or any(spent[n] < min_s or rounds * sizes[n] < min_runs for n in runners):
            random.shuffle(order)
            for name in order:
                times, processor = _block(runners[name], feeds[name], sizes[name], parts[name])
                blocks[name].append(times)
                spent[name] += float(times.sum())
                ran[name] += processor
            rounds += 1
            if observe is not None:
                observe()
    found = {name: _samples(blocks[name], warm[name], parts[name]) for name in runners}
    return {n: replace(s, waited=max(0.0, 1 - ran[n] / max(spent[n], 1e-9))) for n, s in found.items()}


@dataclass(frozen=True)
class Warm:
    """What a warm-up found: the typical call, whether two windows agreed, what it took."""

    typical_s: float
    settled: bool
    seconds: float
    runs: int


def warm_up(runner: Runner, feeds: Feeds, least_s: float) -> Warm:
    """Run for at least `least_s` and until two windows, each a quarter of it, are within 2%."""
    start, runs, previous, most_s = time.perf_counter(), 0, 0.0, MOST_WARMUP * max(least_s, 0.1)
    while True:
        window: list[float] = []
        window_start = time.perf_counter()
        while not window or time.perf_counter() - window_start < least_s / 4:
            begin = time.perf_counter()
            runner.infer(feeds)
            window.append(time.perf_counter() - begin)
        runs += len(window)
        median, seconds = float(np.median(window)), time.perf_counter() - start
        settled = abs(median - previous) <= WINDOW_AGREEMENT * median
        if (settled and seconds >= least_s) or seconds >= most_s:
            return Warm(median, settled, seconds, runs)
        previous = median


def _block(
    runner: Runner, feeds: Feeds, size: int, parts: list[Mapping[str, float]]
) -> tuple[NDArray[np.float64], float]:
    """Seconds of each call, and processor seconds of this thread meanwhile.

    A runner that has `spans` (milliseconds of the last call's parts) is asked in between.
    """
    clock, infer, spans = time.perf_counter_ns, runner.infer, getattr(runner, "spans", None)
    times = np.empty(size, np.int64)
    infer(feeds)
    ran = time.thread_time()
    for i in range(size):
        begin = clock()
        infer(feeds)
        times[i] = clock() - begin
        if spans is not None:
            parts.append(spans())
    return times.astype(np.float64) * 1e-9, time.thread_time() - ran


def _block_size(typical_s: float, min_s: float, min_runs: int) -> int:
    """Calls of a block: 30 ms of them, less where the whole is short, so that there are rounds enough."""
    seconds = min(BLOCK_S, min_s / FEWEST_ROUNDS) if min_s > 0 else BLOCK_S
    size = round(seconds / max(typical_s, 1e-7))
    return max(2, size if min_s > 0 else min(size, -(-min_runs // 2)))


def _samples(blocks: list[NDArray[np.float64]], warm: Warm, spans: list[Mapping[str, float]]) -> Samples:
    numbers = np.repeat(np.arange(len(blocks), dtype=np.int64), [len(b) for b in blocks])
    names = list(spans[0]) if spans else []
    parts = {name.removesuffix("_ms"): np.asarray([s[name] for s in spans]) * 1e-3 for name in names}
    return Samples(np.concatenate(blocks), numbers, warm.settled, warm.seconds, warm.runs, parts)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector out of the timed part."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
