"""Calls that something interrupted are left out; nobody asserts a time."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgeprune.bench import undisturbed
from edgeprune.bench.compare import compare


class Worker:
    """A runner that works for a while on the processor, and sleeps before every `nth` answer."""

    name, inputs, outputs = "worker", (), ()
    settings: Mapping[str, Any] = {}

    def __init__(self, count: int, nth: int = 0) -> None:
        self.count, self.nth, self.calls = count, nth, 0

    def infer(self, feeds: Any) -> dict[str, Any]:
        self.calls += 1
        if self.nth and self.calls % self.nth == 0:
            time.sleep(0.005)
        np.sort(np.arange(self.count)[::-1])
        return {}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undisturbed, "WARMUP_S", 0.01)
    monkeypatch.setattr(undisturbed, "BLOCK_S", 0.001)


def run(one: Any, two: Any, **more: Any) -> tuple[dict[str, Any], float]:
    return undisturbed.measure({"a": one, "b": two}, {"a": {}, "b": {}}, seconds=0.01, **more)


def test_interrupted_calls_are_left_out() -> None:
    samples, lost = run(Worker(20_000), Worker(20_000, nth=3))
    assert lost > 0.1
    assert samples["b"].latency_s.max() < 0.005
    assert samples["a"].rounds == samples["b"].rounds
    assert set(samples["b"].round.tolist()) == set(range(samples["b"].rounds))
    assert compare(samples["a"], samples["b"]).ci_low > 0


def test_on_several_threads_every_call_counts() -> None:
    samples, lost = run(Worker(20_000), Worker(20_000, nth=3), threads=2)
    assert lost == 0
    assert samples["b"].latency_s.max() >= 0.005


def test_where_no_round_is_quiet_all_calls_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undisturbed, "PATIENCE", 0.0)
    samples, lost = run(Worker(100, nth=1), Worker(100, nth=1))
    assert lost > 0.9
    assert samples["a"].latency_s.min() >= 0.005
