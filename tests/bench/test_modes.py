"""Paced, cold and throughput under a clock that moves only when something works; no test asserts a real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgeprune.bench import measure as measuring
from edgeprune.bench import modes
from edgeprune.errors import UsageError

PLAN = modes.Plan(warmup_s=0, min_s=0.5, min_runs=20, seed=1)


class Clock:
    """Stands in for `time`: it moves when a runner works or somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now

    def perf_counter(self) -> float:
        return self.now * 1e-9

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += round(seconds * 1e9)


class Worker:
    """Takes `ms` milliseconds a call; `starts` holds when each began, in seconds."""

    name, inputs, outputs = "fake", (), ()
    settings: Mapping[str, Any] = {}

    def __init__(self, clock: Clock, ms: float, load_ms: float = 0.0) -> None:
        clock.now += round(load_ms * 1e6)
        self.clock, self.ms, self.closed = clock, ms, 0
        self.starts: list[float] = []

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        assert not self.closed
        self.starts.append(self.clock.perf_counter())
        self.clock.now += round(self.ms * 1e6)
        return {}

    def close(self) -> None:
        self.closed += 1

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *args: object) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measuring, "time", made)
    monkeypatch.setattr(modes, "time", made)
    return made


def test_frames_come_at_the_pace_of_the_camera(clock: Clock) -> None:
    runners = {"a": Worker(clock, 5), "b": Worker(clock, 2)}
    made = modes.paced(runners, {"a": {}, "b": {}}, fps=50, plan=PLAN)
    for name, ms in (("a", 5), ("b", 2)):
        np.testing.assert_allclose(made[name].latency_s, ms * 1e-3)
        assert made[name].facts == {"fps": 50, "missed_frames": 0}
        assert len(made[name].latency_s) >= 25  # 0.5 s of them
        frames = runners[name].starts[-modes.FRAMES :]
        np.testing.assert_allclose(np.diff(frames), 1 / 50)
    assert made["a"].rounds == made["b"].rounds


def test_frames_that_a_slow_network_overruns_are_missed_and_counted(clock: Clock) -> None:
    worker = Worker(clock, 25)
    made = modes.paced({"a": worker}, {"a": {}}, fps=100, plan=PLAN)["a"]
    np.testing.assert_allclose(made.latency_s, 25e-3)
    np.testing.assert_allclose(
        np.diff(worker.starts[-modes.FRAMES :]), 30e-3, err_msg="the next frame that is due"
    )
    # a frame every 10 ms, 25 ms of work: two of three are missed
    assert made.facts["missed_frames"] >= 2 * (len(made.latency_s) - made.rounds)


def test_a_cold_start_is_loading_and_the_first_call(clock: Clock) -> None:
    opened: list[Worker] = []

    def opener(load_ms: float) -> Worker:
        opened.append(Worker(clock, 3, load_ms))
        return opened[-1]

    made = modes.cold({"a": lambda: opener(40), "b": lambda: opener(10)}, {"a": {}, "b": {}}, plan=PLAN)
    np.testing.assert_allclose(made["a"].parts_s["load"], 0.040)
    np.testing.assert_allclose(made["b"].parts_s["first"], 0.003)
    np.testing.assert_allclose(made["a"].latency_s, 0.043)
    assert made["a"].rounds == made["b"].rounds >= 20
    assert all(w.closed == 1 and len(w.starts) == 1 for w in opened)


class Sleeper(Worker):
    """Really sleeps, as streams really run at once."""

    def __init__(self) -> None:
        super().__init__(Clock(), 0)
        self.together: set[int] = set()

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.together.add(threading.get_ident())
        time.sleep(0.001)
        return {}


def test_streams_run_at_once_and_their_rates_add() -> None:
    runners = {"one": [Sleeper()], "two": [Sleeper(), Sleeper(), Sleeper()]}
    plan = modes.Plan(warmup_s=0, min_s=0.2, min_runs=1)
    made = modes.throughput(runners, {"one": {}, "two": {}}, plan=plan)
    for name, many in runners.items():
        found = made[name]
        assert found.rate is not None
        assert len(found.rate) == found.rounds >= 20
        assert found.facts == {"streams": len(many)}
        # a rate is calls over seconds: what each stream's mean latency says, added up
        assert np.median(found.rate) == pytest.approx(len(many) / np.median(found.latency_s), rel=0.5)
        np.testing.assert_allclose(found.for_comparing().latency_s, 1 / found.rate)


def test_a_stream_that_fails_is_the_error_and_not_a_hang() -> None:
    class Broken(Sleeper):
        def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
            if threading.current_thread() is not threading.main_thread():
                raise ValueError("out of memory")
            return {}

    with pytest.raises(ValueError, match="out of memory"):
        modes.throughput({"a": [Sleeper(), Broken()]}, {"a": {}}, plan=modes.Plan(0, 0.1, 1))


def test_helpful_errors(clock: Clock) -> None:
    with pytest.raises(UsageError, match=r"--fps 0: expected a number of frames a second above 0"):
        modes.paced({"a": Worker(clock, 1)}, {"a": {}}, fps=0, plan=PLAN)
