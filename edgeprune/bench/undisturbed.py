"""Times runners on a machine that has other work to do: only the calls that nothing interrupted count.

`edgeprune.bench.measure` reports what a user waits for, interruptions and all. A planner wants to know what the network
itself costs, also while something else runs: a call that spent less processor time than it took was interrupted, and
is left out. That is known where a call runs on the calling thread alone (one thread); else every call counts.
Rounds, blocks and their order are as in `measure`: interleaved, drawn anew, the first call of a block not recorded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeprune.bench.measure import Samples
from edgeprune.runtime.runner import Feeds, Runner

WARMUP_S, BLOCK_S = 0.1, 0.015
FEWEST_ROUNDS = 20
PATIENCE = 6.0  # times the seconds that were asked for; then what there is has to do
_WAITED, _CLOCK_S = 0.03, 20e-6  # share of a call, and seconds, that it may take beyond its processor time


@dataclass
class _One:
    """What was recorded of one runner: seconds of each call, its round, and whether it went undisturbed."""

    size: int
    seconds: list[float]
    rounds: list[int]
    quiet: list[bool]


def measure(
    runners: Mapping[str, Runner],
    feeds: Mapping[str, Feeds],
    *,
    seconds: float,
    threads: int = 1,
    seed: int = 0,
) -> tuple[dict[str, Samples], float]:
    """Samples of each runner, and the share of calls that were interrupted, in 0..1.

    Each has at least `seconds` of undisturbed calls in at least 20 rounds, unless that takes 6 times as long; a round
    counts when every runner has an undisturbed call in it. When hardly any round is quiet, all calls count.
    """
    found = {name: _warm(runner, feeds[name]) for name, runner in runners.items()}
    order, random, start, number = list(runners), np.random.default_rng(seed), time.perf_counter(), 0
    while True:
        random.shuffle(order)
        for name in order:
            _block(runners[name], feeds[name], found[name], number, threads)
        number += 1
        late = time.perf_counter() - start > PATIENCE * seconds * len(runners)
        if number >= FEWEST_ROUNDS and (late or min(map(_spent, found.values())) >= seconds):
            break
    lost = 1 - float(np.mean([q for one in found.values() for q in one.quiet]))
    shared = set.intersection(
        *({r for r, q in zip(o.rounds, o.quiet, strict=True) if q} for o in found.values())
    )
    if len(shared) < FEWEST_ROUNDS // 2:
        return {name: _samples(one, set(one.rounds), False) for name, one in found.items()}, lost
    return {name: _samples(one, shared, True) for name, one in found.items()}, lost


def _warm(runner: Runner, feeds: Feeds) -> _One:
    start, times = time.perf_counter(), [1.0]
    while len(times) < 4 or time.perf_counter() - start < WARMUP_S:
        begin = time.perf_counter()
        runner.infer(feeds)
        times.append(time.perf_counter() - begin)
    return _One(max(2, round(BLOCK_S / min(times))), [], [], [])


def _block(runner: Runner, feeds: Feeds, one: _One, number: int, threads: int) -> None:
    runner.infer(feeds)
    for _ in range(one.size):
        began = now()
        runner.infer(feeds)
        one.seconds.append(time.perf_counter() - began[1])
        one.quiet.append(quiet(began, threads))
        one.rounds.append(number)


def now() -> tuple[float, float]:
    """Processor time of this thread, and time, in seconds."""
    return time.thread_time(), time.perf_counter()


def quiet(began: tuple[float, float], threads: int) -> bool:
    """Whether nothing interrupted what this thread has done since `began`; always so when others worked for it."""
    took, spent = time.perf_counter() - began[1], time.thread_time() - began[0]
    return threads != 1 or took - spent <= _WAITED * took + _CLOCK_S


def _spent(one: _One) -> float:
    return sum(s for s, quiet in zip(one.seconds, one.quiet, strict=True) if quiet)


def _samples(one: _One, rounds: set[int], quiet_only: bool) -> Samples:
    """The calls of some rounds, renumbered without gaps."""
    place = {old: new for new, old in enumerate(sorted(rounds))}
    kept = [
        (s, place[r])
        for s, r, q in zip(one.seconds, one.rounds, one.quiet, strict=True)
        if r in place and (q or not quiet_only)
    ]
    seconds, numbers = zip(*kept, strict=True)
    return Samples(np.array(seconds, np.float64), np.array(numbers, np.int64), warmup_s=WARMUP_S)
