"""DALR by the clock: pairs that are no faster stay layers, and a latency is met as measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeprune.bench import layers
from edgeprune.errors import BudgetNotMet, MissingHere
from edgeprune.methods.dalr import DALR
from edgeprune.methods.ranks import Look, ladders
from edgeprune.options import PruneOptions
from edgeprune.plan import PruningPlan
from edgeprune.prune import macs, pair_times
from edgeprune.prune.budget import Budget
from edgeprune.prune.latency import Timing
from edgeprune.prune.pair_times import PairTime
from tests.methods.test_dalr import Thin, thin
from tests.prune.test_pair_times import macs_of


@pytest.fixture(autouse=True)
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which time is MACs."""
    monkeypatch.setattr(layers, "layer_ms", lambda path, threads, scratch: macs_of(path))


def slow_pairs(path: Path, threads: int, scratch: Path) -> float:
    """A device that takes long for few outputs: what becomes a pair of the second layer's rank is slower."""
    return macs_of(path) * (1e6 if macs_of(path) == 64 * 144 * 3 else 1)


def test_a_pair_that_is_slower_here_stays_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "layer_ms", slow_pairs)
    monkeypatch.setattr(pair_times, "POINTS", 16)  # every rank of these layers
    job = thin(110_000)
    DALR(ridge=1e-9)(job)
    assert ("two", 3) not in {(one.layer, one.rank) for one in job.plans[0].low_rank}
    for method, job in ((DALR(ridge=1e-9, measured=False), thin(110_000)), (DALR(ridge=1e-9), thin(110_000))):
        if method.measured:
            whole = macs.measure(job.network.module, job.network.example())[1]
            job.budget = Budget(params=whole - 1700.0)  # size alone: nothing is timed
        method(job)
        assert [(one.layer, one.rank) for one in job.plans[0].low_rank] == [("two", 3)]


def test_nothing_faster_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "layer_ms", lambda path, threads, scratch: 1.0)
    with pytest.raises(BudgetNotMet, match=r"low rank saves 0 of the 110000 MACs .*the knob measured=false"):
        DALR()(thin(110_000))


def test_without_a_clock_macs_decide_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(path: Path, threads: int, scratch: Path) -> float:
        raise MissingHere("no onnxruntime")

    monkeypatch.setattr(layers, "layer_ms", none)
    job = thin(110_000)
    DALR(ridge=1e-9)(job)
    assert [one.layer for one in job.plans[0].low_rank] == ["two"]
    assert job.warnings == ["pairs are chosen by MACs, not by what they take here: no onnxruntime"]


def test_a_budget_on_latency_is_met_as_measured() -> None:
    """The clock says more than the layers do, as a network has more than layers: the plan is corrected."""
    job = thin(0)
    example = job.network.example()

    def clock(module: nn.Module) -> float:
        return 1.2 * macs.measure(module, example)[0] + 9000

    dense = clock(job.dense)
    job.budget, job.timing = Budget(latency=0.5), Timing(None, dense, clock)
    DALR()(job)
    assert 0.95 * 0.5 * dense <= clock(job.network.module) <= 1.02 * 0.5 * dense
    entry = job.trace[0]
    assert entry["latency_ms"] == clock(job.network.module)
    assert len(job.plans[0].why["latency"]["tries"]) > 1


def test_a_network_that_is_fast_enough_stays_whole() -> None:
    job = thin(0)
    job.budget, job.timing = Budget(milliseconds=5.0), Timing(None, 5.0, lambda module: 5.05)
    DALR()(job)
    assert job.plans == [PruningPlan()]


def test_ranks_that_save_no_macs_are_not_offered_however_fast() -> None:
    """No rank above the highest that was timed, 14 of 16, although the nearest time says faster."""
    looks, times = {"two": Look(torch.zeros(17), 64.0)}, {"two": PairTime(1.0, (8, 14), (0.9, 0.9))}
    for kind in ("latency", "macs", "params"):
        steps = ladders(Thin(), looks, kind, 1, times, biased=True)
        assert [one.rank for one in steps[0]] == list(range(14, 0, -1))


def test_what_the_knob_does_not_do_is_told() -> None:
    assert set(DALR().idle(PruneOptions(latency="0.5x", macs="0.5"))) == {"measured"}
    assert set(DALR().idle(PruneOptions(params="0.5"))) == {"measured"}
    assert not DALR().idle(PruneOptions(macs="0.5"))
