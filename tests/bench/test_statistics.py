"""Percentiles and the bootstrap against plain numpy; the verdict's rule on samples made to order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.bench.compare import Verdict, compare
from edgeprune.bench.measure import Samples
from edgeprune.bench.statistics import Latency, bootstrap_medians, draw_rounds, summary, throughput
from edgeprune.errors import DataError


def samples(rounds: int, size: int, scale: float, seed: int, mood: bool = True) -> Samples:
    """Rounds share a mood of the machine, the same for every seed; jitter is each sample's own."""
    moods = (
        np.exp(0.3 * np.random.default_rng(0).standard_normal(rounds).cumsum() / 5)
        if mood
        else np.ones(rounds)
    )
    random = np.random.default_rng(seed)
    jitter = 1 + 0.05 * random.exponential(size=(rounds, size))
    times = scale * moods[:, None] * jitter
    return Samples(times.ravel() * 1e-3, np.repeat(np.arange(rounds), size))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=150))
def test_summary_is_numpys(values: list[float]) -> None:
    made = summary(values)
    ms = np.asarray(values) * 1e3
    assert made.p50 == pytest.approx(np.median(ms))
    assert made.p90 == pytest.approx(np.quantile(ms, 0.9))
    assert made.std == pytest.approx(np.std(ms, ddof=1))
    assert made.cov == pytest.approx(np.std(ms, ddof=1) / made.mean)
    assert (made.min, made.max, made.n) == (ms.min(), ms.max(), len(values))
    assert (made.p99 is None) == (len(values) < 100)
    assert made.p999 is None
    assert Latency.from_json(made.to_json()) == made


def test_summary_of_few_and_of_nothing() -> None:
    assert summary([0.002]).std == 0
    assert throughput(summary([0.002, 0.002]), 8) == pytest.approx(4000)
    assert summary(np.ones(10_000)).p999 == 1000
    for bad in ([], [np.nan], [[1.0]]):
        with pytest.raises(DataError, match="expected one dimension, at least one value, all finite"):
            summary(bad)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 10**6))
def test_bootstrap_median_is_the_median_of_the_repeated_rounds(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    rounds = np.repeat(np.arange(len(sizes)), sizes)
    times = random.random(len(rounds))
    draws = random.integers(0, 3, (5, len(sizes))) + 1
    for draw, made in zip(draws, bootstrap_medians(times, rounds, draws), strict=True):
        repeated = np.sort(np.repeat(times, draw[rounds]))
        assert made == repeated[(len(repeated) - 1) // 2]


def test_rounds_are_drawn_in_neighbourhoods_and_evenly() -> None:
    draws = draw_rounds(64, 4000, 0)
    assert draws.shape == (4000, 64)
    assert (draws.sum(axis=1) >= 64).all()
    np.testing.assert_allclose(draws.mean(axis=0), draws.mean(), rtol=0.1)
    assert np.corrcoef(draws[:, 10], draws[:, 11])[0, 1] > 0.5
    assert abs(np.corrcoef(draws[:, 10], draws[:, 40])[0, 1]) < 0.15
    np.testing.assert_array_equal(draws, draw_rounds(64, 4000, 0))


def test_ten_copies_are_no_change_and_ten_faster_ones_are_faster() -> None:
    words = [compare(samples(100, 30, 1, 2 * s), samples(100, 30, 1, 2 * s + 1)).word for s in range(10)]
    assert words == ["no change"] * 10
    made = [compare(samples(100, 30, 1, 2 * s), samples(100, 30, 0.92, 2 * s + 1)) for s in range(10)]
    assert [v.word for v in made] == ["faster"] * 10
    assert all(v.ci_low <= v.speedup <= v.ci_high and v.ci_low <= 1 / 0.92 <= v.ci_high for v in made)
    assert compare(samples(100, 30, 0.92, 0), samples(100, 30, 1, 1)).word == "slower"


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        made = compare(
            samples(60, 6, 1.1, 2 * seed), samples(60, 6, 1, 2 * seed + 1), confidence=0.9, resamples=300
        )
        covered += made.ci_low <= 1.1 <= made.ci_high
    assert covered >= 46  # 54 expected of 60; fewer than 46 has a chance below 0.2%


def test_pairing_is_what_makes_it_narrow() -> None:
    a, b = samples(100, 10, 1, 1), samples(100, 10, 1, 2)
    random = np.random.default_rng(0).permutation(100)
    shuffled = Samples(b.latency_s.reshape(100, 10)[random].ravel(), b.round)
    paired, apart = compare(a, b), compare(a, shuffled)
    assert paired.ci_high - paired.ci_low < 0.5 * (apart.ci_high - apart.ci_low)


def test_small_but_certain_differences_and_few_rounds_are_no_difference() -> None:
    close = compare(samples(200, 50, 1.01, 0, False), samples(200, 50, 1, 1, False))
    assert close.ci_low > 1
    assert (close.word, close.why) == ("no change", "the ratio is within 1.02")
    few = compare(samples(4, 50, 2, 0), samples(4, 50, 1, 1))
    assert few.word == "cannot say"
    assert "4 rounds are too few" in few.why
    assert Verdict.from_json(few.to_json()) == few
    assert str(compare(samples(100, 30, 2, 0), samples(100, 30, 1, 1))).startswith("faster 2.0")


def test_calls_that_are_interrupted_by_chance_are_no_change() -> None:
    """Half of all calls take seven times as long, in stretches; by chance one side has a few more of them."""
    random = np.random.default_rng(5)
    rounds, size = 60, 10
    busy = np.repeat(random.random(rounds) < 0.55, size)
    jitter = random.normal(1, 0.01, (2, rounds * size))
    one = Samples(1e-3 * jitter[0] * np.where(busy, 7, 1), np.repeat(np.arange(rounds), size))
    lucky = np.where(busy & (random.random(rounds * size) < 0.25), False, busy)
    other = Samples(1e-3 * jitter[1] * np.where(lucky, 7, 1), one.round)
    made = compare(one, other)
    assert made.speedup > 3, "the medians are in two modes"
    assert made.word == "no change"


def test_helpful_errors() -> None:
    with pytest.raises(DataError, match="9 rounds against 8: expected samples of one measurement"):
        compare(samples(9, 2, 1, 0), samples(8, 2, 1, 0))
