"""Ways to measure beside the steady loop: frames at a camera's pace, cold starts, and several streams at once.

All are interleaved in rounds like `edgeprune.bench.measure.measure` and give the same Samples, so the same comparison
holds for them.

paced: a frame is due every 1/fps seconds and the thread sleeps in between, so clocks and caches fall asleep as they do
behind a camera. A frame that is late does not hurry the next; those that it overran are missed.
cold: a session is opened and runs once, again and again; the file is in the page cache and the library is loaded.
throughput: each network has as many runners as streams, a thread each, and they run at once.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.bench.measure import FEWEST_ROUNDS, Samples, Warm, quiet, warm_up
from edgeprune.errors import UsageError
from edgeprune.runtime.runner import Feeds, Runner

FRAMES = 8  # of one network in a round of `paced`
STREAM_S = 0.25  # of one network in a round of `throughput`
Observe = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """How long and in what order: as the arguments of `measure` of the same names."""

    warmup_s: float = 1.0
    min_s: float = 3.0
    min_runs: int = 200
    seed: int = 0
    observe: Observe | None = None

    def rounds(self, names: Sequence[str], enough: Callable[[int], bool]) -> Any:
        """Yield (round, name) in an order drawn anew each round, until `enough(rounds done)`."""
        order, random, done = list(names), np.random.default_rng(self.seed), 0
        while done == 0 or not enough(done):
            random.shuffle(order)
            for name in order:
                yield done, name
            done += 1
            if self.observe is not None:
                self.observe()


def paced(
    runners: Mapping[str, Runner], feeds: Mapping[str, Feeds], *, fps: float, plan: Plan
) -> dict[str, Samples]:
    """Frames at `fps` a second, at least `min_runs` of them and `min_s` seconds of them for each network."""
    if not 0 < fps <= 10_000:
        raise UsageError(f"--fps {fps}: expected a number of frames a second above 0")
    least = max(plan.min_runs, math.ceil(plan.min_s * fps))
    blocks: dict[str, list[NDArray[np.float64]]] = {name: [] for name in runners}
    missed = dict.fromkeys(runners, 0)
    with quiet():
        warm = {name: warm_up(runner, feeds[name], plan.warmup_s) for name, runner in runners.items()}
        for _, name in plan.rounds(list(runners), lambda done: done * FRAMES >= least):
            times, late = _frames(runners[name], feeds[name], 1 / fps)
            blocks[name].append(times)
            missed[name] += late
    return {
        name: _samples(blocks[name], warm[name], {"fps": fps, "missed_frames": missed[name]})
        for name in runners
    }


def _frames(runner: Runner, feeds: Feeds, period: float) -> tuple[NDArray[np.float64], int]:
    """Seconds of FRAMES frames after one that is not recorded, and how many due times they overran."""
    due, missed = time.perf_counter() + period, 0
    times: list[float] = []
    runner.infer(feeds)
    while len(times) < FRAMES:
        now = time.perf_counter()
        if now > due:
            overran = math.ceil((now - due) / period)
            missed, due = missed + overran, due + overran * period
        time.sleep(max(due - time.perf_counter(), 0))
        begin = time.perf_counter_ns()
        runner.infer(feeds)
        times.append((time.perf_counter_ns() - begin) * 1e-9)
        due += period
    return np.asarray(times), missed


def cold(
    openers: Mapping[str, Callable[[], Runner]], feeds: Mapping[str, Feeds], *, plan: Plan
) -> dict[str, Samples]:
    """Open, run once, close: at least 20 times each, and for `min_s` seconds. parts_s: load and first."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in openers}
    least = FEWEST_ROUNDS if plan.min_s > 0 else min(plan.min_runs, FEWEST_ROUNDS)

    def enough(done: int) -> bool:
        return done >= least and all(sum(map(sum, times)) >= plan.min_s for times in took.values())

    with quiet():
        for opener, one in ((openers[name], feeds[name]) for name in openers):
            _start(opener, one)  # the library itself is loaded once
        for _, name in plan.rounds(list(openers), enough):
            took[name].append(_start(openers[name], feeds[name]))
    made = {}
    for name, pairs in took.items():
        parts = np.asarray(pairs)
        made[name] = Samples(
            parts.sum(1),
            np.arange(len(parts)),
            parts_s={"load": parts[:, 0], "first": parts[:, 1]},
            facts={"file_in_page_cache": True},
        )
    return made


def _start(opener: Callable[[], Runner], feeds: Feeds) -> tuple[float, float]:
    begin = time.perf_counter()
    runner = opener()
    try:
        loaded = time.perf_counter()
        runner.infer(feeds)
        return loaded - begin, time.perf_counter() - loaded
    finally:
        runner.close()


def throughput(
    runners: Mapping[str, Sequence[Runner]], feeds: Mapping[str, Feeds], *, plan: Plan
) -> dict[str, Samples]:
    """All runners of a network at once, a thread each; `rate` counts their calls a second, round by round."""
    blocks: dict[str, list[NDArray[np.float64]]] = {name: [] for name in runners}
    rates: dict[str, list[float]] = {name: [] for name in runners}
    counts = dict.fromkeys(runners, 0)
    seconds = min(STREAM_S, plan.min_s / FEWEST_ROUNDS) if plan.min_s > 0 else STREAM_S
    least = max(math.ceil(plan.min_s / seconds), FEWEST_ROUNDS if plan.min_s > 0 else 1)

    def enough(done: int) -> bool:
        return done >= least and all(count >= plan.min_runs for count in counts.values())

    with quiet():
        warm = {name: warm_up(many[0], feeds[name], plan.warmup_s) for name, many in runners.items()}
        for name, many in runners.items():
            _streams(many, feeds[name], seconds)
        for _, name in plan.rounds(list(runners), enough):
            times, rate = _streams(runners[name], feeds[name], seconds)
            blocks[name].append(times)
            rates[name].append(rate)
            counts[name] += len(times)
    made = {name: _samples(blocks[name], warm[name], {"streams": len(runners[name])}) for name in runners}
    return {
        name: Samples(
            s.latency_s, s.round, s.settled, s.warmup_s, s.warmup_runs, {}, np.asarray(rates[name]), s.facts
        )
        for name, s in made.items()
    }


def _streams(runners: Sequence[Runner], feeds: Feeds, seconds: float) -> tuple[NDArray[np.float64], float]:
    """Seconds of every call, and calls a second: the streams' own rates added, so that a late end costs none."""
    took: list[list[float]] = [[] for _ in runners]
    spans = [1.0] * len(runners)
    failed: list[BaseException] = []
    gate = threading.Barrier(len(runners))

    def stream(i: int) -> None:
        try:
            gate.wait()
            start = end = time.perf_counter()
            while end - start < seconds:
                begin = time.perf_counter()
                runners[i].infer(feeds)
                end = time.perf_counter()
                took[i].append(end - begin)
            spans[i] = end - start
        except BaseException as err:
            failed.append(err)
            gate.abort()

    threads = [threading.Thread(target=stream, args=(i,), daemon=True) for i in range(len(runners))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise next((e for e in failed if not isinstance(e, threading.BrokenBarrierError)), failed[0])
    return np.concatenate([np.asarray(t) for t in took]), sum(
        len(t) / s for t, s in zip(took, spans, strict=True)
    )


def _samples(blocks: list[NDArray[np.float64]], warm: Warm, facts: Mapping[str, Any]) -> Samples:
    numbers = np.repeat(np.arange(len(blocks), dtype=np.int64), [len(b) for b in blocks])
    return Samples(np.concatenate(blocks), numbers, warm.settled, warm.seconds, warm.runs, facts=facts)
