"""The JSON of a result comes back as it went, refuses what it is not, and unlike things are not compared."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from edgeprune.bench.compare import Verdict
from edgeprune.bench.result import SCHEMA, BenchResult, Measured, differences, require_comparable
from edgeprune.bench.statistics import summary
from edgeprune.errors import DataError, UsageError


def result(**changes: Any) -> BenchResult:
    made = BenchResult(
        model=Measured(
            "slim", "ab" * 32, ("cd" * 32,), 1234, 10**9, 5_000, ({"name": "images", "shape": [1, 3, 8, 8]},)
        ),
        config={"runtime": "ort", "batch": 1, "mode": "steady", "threads": 1},
        host={"cpu": {"name": "EPYC"}, "gpu": None},
        latency_ms=summary([0.001, 0.002]),
        throughput_ips=600.0,
        tool_version="0.1.0",
        created="2026-11-21T05:00:00Z",
        warnings=("busy",),
        verdict=Verdict("dense", "faster", 1.5, 1.4, 1.6, 0.99, "the interval excludes 1"),
        reasons={"power": "no sensor", "gpu_ms": "measured by the wall clock"},
    )
    return dataclasses.replace(made, **changes)


def test_round_trip_through_text() -> None:
    made = result(gpu_ms=summary([0.001]), layers=({"name": "conv", "ms_median": 0.1},))
    data = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert next(iter(data)) == "schema"
    assert data["schema"] == SCHEMA
    assert BenchResult.from_json(data) == made
    assert BenchResult.from_json(json.loads(json.dumps(result(verdict=None).to_json()))) == result(
        verdict=None
    )
    assert data["power"] is None
    assert data["reasons"]["power"] == "no sensor"


def test_helpful_errors() -> None:
    with pytest.raises(DataError, match=r"schema 'edgeprune\.bench/9': expected 'edgeprune\.bench/1'"):
        BenchResult.from_json({**result().to_json(), "schema": "edgeprune.bench/9"})
    with pytest.raises(DataError, match="not a result of edgeprune bench: 'latency_ms'"):
        BenchResult.from_json({k: v for k, v in result().to_json().items() if k != "latency_ms"})
    with pytest.raises(DataError, match="unexpected keyword argument 'speed'"):
        BenchResult.from_json({**result().to_json(), "speed": 1})


def test_unlike_results_are_not_compared_unless_forced() -> None:
    one = result()
    other = result(config={**one.config, "batch": 8}, host={"cpu": {"name": "Orin"}, "gpu": None})
    assert differences(one, one) == []
    assert differences(one, other) == ["batch 1 against 8", "cpu EPYC against Orin"]
    with pytest.raises(UsageError, match=r"not comparable: batch 1 against 8; .*or give --force-compare"):
        require_comparable(one, other)
    require_comparable(one, other, force=True)


def test_differences_are_told_in_the_words_of_the_user() -> None:
    one = result(config={**result().config, "spin_wait": False, "streams": 1, "input": "random"})
    other = result(
        config={**one.config, "spin_wait": True, "mode": "throughput", "streams": 2, "threads": None}
    )
    assert differences(one, other) == [
        "mode steady against throughput",
        "threads 1 against unknown",
        "spinning threads (--spin) no against yes",
    ], "streams come with the mode"
    zeros = result(config={**one.config, "input": "zeros", "batch": 2})
    assert differences(one, zeros) == ["batch 1 against 2", "input random against zeros"]


def test_inputs_of_other_sizes_are_unlike_and_the_order_of_axes_is_not() -> None:
    def with_input(*shape: Any) -> BenchResult:
        return result(
            model=dataclasses.replace(result().model, inputs=({"name": "x", "shape": list(shape)},))
        )

    assert differences(with_input("batch", 3, 28, 28), with_input(1, 28, 28, 3)) == []
    assert differences(with_input(1, 3, 28, 28), with_input(1, 3, 20, 20)) == [
        "input of 3x28x28 against 3x20x20"
    ]
    unknown = result(model=dataclasses.replace(result().model, inputs=()))
    assert differences(with_input(1, 3, 28, 28), unknown) == []
