"""The knapsack against brute force; the layer table's file; the latency plan end to end."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.bench.table import Layer, LayerShape, LayerTable
from edgeprune.errors import BudgetNotMet, DataError
from edgeprune.prune import knapsack
from edgeprune.prune.knapsack import Cost


def brute(values: list[np.ndarray], costs: list[Cost], limit: float) -> float | None:
    best = None
    for picks in itertools.product(*[range(len(v)) for v in values]):
        cost = sum(c.table[tuple(picks[g] for g in c.groups)] for c in costs)
        value = sum(v[j] for v, j in zip(values, picks, strict=True))
        if cost <= limit and (best is None or value > best):
            best = value
    return best


Problem = tuple[list[np.ndarray], list[Cost], float]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    groups = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    values = [np.sort(rng.uniform(0, 10, rng.integers(1, 6))) for _ in range(groups)]
    costs = [Cost((g,), np.sort(rng.uniform(0, 3, len(values[g])))) for g in range(groups)]
    for a, b in itertools.combinations(range(groups), 2):
        if rng.random() < 0.5:
            costs.append(Cost((b, a), rng.uniform(0, 5, (len(values[b]), len(values[a])))))
    if groups > 2 and draw(st.booleans()):
        costs.append(Cost((0, 1, 2), rng.uniform(0, 5, [len(v) for v in values[:3]])))
    most = sum(float(c.table.max()) for c in costs)
    return values, costs, draw(st.floats(0, 1)) * most


@settings(max_examples=150, deadline=None)
@given(problems())
def test_it_finds_the_best_of_small_problems(problem: Problem) -> None:
    values, costs, limit = problem
    best = brute(values, costs, limit)
    if best is None:
        with pytest.raises(BudgetNotMet, match="the cheapest choice"):
            knapsack.solve(values, costs, limit)
        return
    found = knapsack.solve(values, costs, limit)
    assert found.proved
    assert found.cost <= limit
    assert found.value == pytest.approx(best, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_proof_finds_the_best_from_the_worst_start(problem: Problem) -> None:
    values, costs, limit = problem
    best = brute(values, costs, limit)
    if best is None:
        return
    inside = knapsack._Problem(values, costs, limit)
    cheapest = inside.relaxed(None)[0]
    picks, proved = inside.prove(cheapest, inside.bisect(cheapest)[2], 10**6)
    assert proved
    assert inside.value(picks) == pytest.approx(best, abs=1e-9)


def test_the_bound_holds_and_is_near_without_a_proof() -> None:
    rng = np.random.default_rng(0)
    values = [np.cumsum(rng.uniform(0, 1, 16)) for _ in range(40)]
    steps = np.arange(1, 17) / 16
    costs = [Cost((g, g + 1), rng.uniform(0.5, 2) * np.outer(steps, steps)) for g in range(39)]
    limit = 0.4 * sum(float(c.table.max()) for c in costs)
    found = knapsack.solve(values, costs, limit, nodes=50)
    assert found.cost <= limit
    assert found.value <= found.bound <= 1.01 * found.value


def test_a_table_survives_its_file_and_interpolates(tmp_path: Path) -> None:
    shape = LayerShape("Conv", (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    table = LayerTable(
        "board", "ort", "fp32", (Layer(shape, (8, 16), (8, 24), ((1, 2), (3, 5))),), fixed_ms=0.5
    )
    assert LayerTable.from_json(table.to_json()) == table
    layer = table.find(shape)
    assert layer.at(8, 24) == 2
    assert layer.at(12, 16) == pytest.approx(2.75)
    assert layer.at(1, 99) == 2
    with pytest.raises(DataError, match="has no MatMul"):
        table.find(LayerShape("MatMul", (4,)))
    file = tmp_path / "t.json"
    file.write_text('{"format": "other"}')
    with pytest.raises(DataError, match=r"t\.json: expected format 'edgeprune-layer-table'"):
        LayerTable.read(file)
