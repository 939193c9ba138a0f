"""Interleaving and stop rules with a clock that is under control; no test asserts a real time."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgeprune.artifact import TensorSpec
from edgeprune.bench import measure as measuring
from edgeprune.bench.inputs import shape_at, synthetic
from edgeprune.bench.measure import measure
from edgeprune.errors import UsageError


class Clock:
    """Stands in for `time`: it moves only when a runner works."""

    def __init__(self) -> None:
        self.now = self.ran = 0

    def perf_counter_ns(self) -> int:
        return self.now

    def perf_counter(self) -> float:
        return self.now * 1e-9

    def thread_time(self) -> float:
        return self.ran * 1e-9


class Worker:
    """Takes `cost(call)` microseconds."""

    name, inputs, outputs = "fake", (), ()
    settings: Mapping[str, Any] = {}
    runs = 1.0  # share of its time that the calling thread runs

    def __init__(self, clock: Clock, letter: str, calls: list[str], cost: Any = lambda i: 1000) -> None:
        self.clock, self.letter, self.calls, self.cost, self.n = clock, letter, calls, cost, 0
        self.collecting: list[bool] = []

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.clock.now += int(self.cost(self.n) * 1000)
        self.clock.ran += int(self.cost(self.n) * self.runs * 1000)
        self.n += 1
        self.calls.append(self.letter)
        self.collecting.append(gc.isenabled())
        return {}

    def close(self) -> None: ...

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *args: object) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measuring, "time", made)
    return made


def both(clock: Clock, **costs: Any) -> tuple[dict[str, Worker], list[str]]:
    calls: list[str] = []
    return {name: Worker(clock, name, calls, cost) for name, cost in costs.items()}, calls


def test_rounds_hold_one_block_of_each_and_the_first_call_is_not_recorded(clock: Clock) -> None:
    workers, calls = both(clock, a=lambda i: 1000, b=lambda i: 500)
    made = measure(workers, {"a": {}, "b": {}}, warmup_s=0.1, min_s=1.0, min_runs=10)
    warm = sum(s.warmup_runs for s in made.values())
    letters, lengths = zip(*[(k, len(list(g))) for k, g in itertools.groupby(calls[warm:])], strict=True)
    assert set(letters) == {"a", "b"}
    assert max(lengths) <= 2 * 61  # 30 ms of b and one call more, twice where two rounds meet
    assert made["a"].rounds == made["b"].rounds
    assert len(made["a"].latency_s) == blocks_recorded(calls[warm:], "a", made["a"].rounds)
    np.testing.assert_allclose(made["a"].latency_s, 1e-3)
    np.testing.assert_allclose(made["b"].latency_s, 5e-4)


def blocks_recorded(calls: list[str], letter: str, rounds: int) -> int:
    return calls.count(letter) - rounds


def test_order_within_a_round_is_drawn_and_repeatable(clock: Clock) -> None:
    orders = []
    for seed in (0, 0, 1):
        workers, calls = both(clock, a=lambda i: 1000, b=lambda i: 1000)
        measure(workers, {"a": {}, "b": {}}, warmup_s=0, min_s=0.5, min_runs=50, seed=seed)
        orders.append("".join(calls))
    assert orders[0] == orders[1] != orders[2]
    assert "ab" in orders[0]
    assert "ba" in orders[0]


@pytest.mark.parametrize(("min_s", "min_runs"), [(0.2, 1), (0.0, 500), (1.0, 300)])
def test_least_time_and_least_runs_both_hold(clock: Clock, min_s: float, min_runs: int) -> None:
    workers, _ = both(clock, a=lambda i: 1000, b=lambda i: 10)
    for samples in measure(workers, {"a": {}, "b": {}}, warmup_s=0, min_s=min_s, min_runs=min_runs).values():
        assert samples.latency_s.sum() >= min_s
        assert len(samples.latency_s) >= min_runs
        assert len(samples.latency_s) == len(samples.round)
        if min_s:
            assert samples.rounds >= 20


def test_warm_up_goes_on_until_two_windows_agree(clock: Clock) -> None:
    workers, _ = both(clock, a=lambda i: 1000 + max(0, 4000 - i))
    samples = measure(workers, {"a": {}}, warmup_s=1.0, min_s=0, min_runs=2)["a"]
    assert samples.settled
    assert samples.warmup_s > 1.0
    restless = {"a": Worker(clock, "a", [], lambda i: 1000 * 1.001**i)}
    samples = measure(restless, {"a": {}}, warmup_s=1.0, min_s=0, min_runs=2)["a"]
    assert not samples.settled
    assert samples.warmup_s >= 5.0


def test_the_garbage_collector_rests_and_comes_back(clock: Clock) -> None:
    workers, _ = both(clock, a=lambda i: 1000)
    measure(workers, {"a": {}}, warmup_s=0, min_s=0, min_runs=4)
    assert not any(workers["a"].collecting)
    assert gc.isenabled()


def test_a_runner_that_tells_its_parts_is_asked_after_each_recorded_call(clock: Clock) -> None:
    class Engine(Worker):
        def spans(self) -> dict[str, float]:
            self.clock.now += 10**6  # outside the timed part
            return {"gpu_ms": float(self.n), "h2d_ms": 0.5}

    engine = Engine(clock, "a", [])
    samples = measure({"a": engine}, {"a": {}}, warmup_s=0, min_s=0, min_runs=6)["a"]
    np.testing.assert_allclose(samples.latency_s, 1e-3)
    assert set(samples.parts_s) == {"gpu", "h2d"}
    assert len(samples.parts_s["gpu"]) == len(samples.latency_s)
    assert samples.parts_s["gpu"][-1] == engine.n * 1e-3
    assert len(set(samples.parts_s["gpu"])) == len(samples.latency_s), "of each call its own"


def test_time_in_which_the_calling_thread_did_not_run_is_told_apart(clock: Clock) -> None:
    workers, _ = both(clock, a=lambda i: 1000, b=lambda i: 500)
    workers["b"].runs = 0.25
    made = measure(workers, {"a": {}, "b": {}}, warmup_s=0, min_s=0.1, min_runs=4)
    assert made["a"].waited == pytest.approx(0)
    assert made["b"].waited == pytest.approx(0.75)


def test_observer_is_called_each_round_outside_the_timed_part(clock: Clock) -> None:
    workers, _ = both(clock, a=lambda i: 1000)
    seen: list[int] = []

    def observe() -> None:
        seen.append(1)
        clock.now += 10**9

    samples = measure(workers, {"a": {}}, warmup_s=0, min_s=0.1, min_runs=4, observe=observe)["a"]
    assert len(seen) == samples.rounds
    np.testing.assert_allclose(samples.latency_s, 1e-3)


def test_helpful_errors() -> None:
    with pytest.raises(UsageError, match="nothing to measure: 0 runners"):
        measure({}, {})
    with pytest.raises(UsageError, match="no input for a; feeds holds b"):
        measure({"a": Worker(Clock(), "a", [])}, {"b": {}})


def test_synthetic_inputs() -> None:
    specs = [TensorSpec("x", ("batch", 3, 4), "float16"), TensorSpec("m", (2, 5), "uint8")]
    feeds = synthetic(specs, batch=2, seed=1)
    assert feeds["x"].shape == (2, 3, 4)
    assert feeds["x"].dtype == np.float16
    assert feeds["m"].dtype == np.uint8
    np.testing.assert_array_equal(feeds["x"], synthetic(specs, batch=2, seed=1)["x"])
    assert not synthetic(specs, batch=2, kind="zeros")["x"].any()
    with pytest.raises(UsageError, match=r"takes batch 2, not 4: export with --batch 1:4:4"):
        synthetic(specs[1:], batch=4)
    with pytest.raises(UsageError, match="only the batch may be free"):
        shape_at(TensorSpec("x", ("n", "h")), 1)
    with pytest.raises(UsageError, match="expected random or zeros"):
        synthetic(specs, kind="ones")
