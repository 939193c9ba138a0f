"""What progress shows while a network learns: MACs, and the agreement of now, not that of the last cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from edgeprune import train
from edgeprune.methods import learning, parts
from edgeprune.methods.job import Job
from edgeprune.objectives.distill import Distill


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    @contextmanager
    def bar(name: str, total: int, **_: Any) -> Iterator[Callable[..., None]]:
        yield lambda steps, **words: found.append(words)

    monkeypatch.setattr(train, "bar", bar)
    return found


def test_agreement_is_told_anew_at_each_validation(
    planted: Callable[..., Job], shown: list[dict[str, Any]]
) -> None:
    job = planted(lr=0.05, bn_recal=False)
    parts.cut(job, parts.limits(job)[-1])
    assert job.trace[-1]["agreement_after_cut"] == 1.0
    assert job.told()(None)["agreement"] == "100.0%", "before the first look, what the cut left"
    with torch.no_grad():
        job.network.module.get_parameter(
            "head.weight"
        ).neg_()  # it answers otherwise, which the trace does not know
    parts.learn(job, parts.chosen_objective(job), 30, "recover", validations=3)
    told = [float(words["agreement"].rstrip("%")) for words in shown]
    assert [len(set(told[i : i + 10])) for i in (0, 10, 20)] == [1, 1, 1]
    assert told[0] < 50 < told[20]
    assert list(shown[0])[:3] == ["MACs", "agreement", "loss"]
    share = job.trace[-1]["macs"] / job.dense_costs.macs(job.dense_costs.full)
    assert shown[0]["MACs"] == f"{share:.0%}"


def test_before_the_first_cut_all_is_there(planted: Callable[..., Job], shown: list[dict[str, Any]]) -> None:
    job = planted()
    parts.learn(job, Distill(learning.task(job.network)), 2, "warm", validations=1)
    assert [(words["MACs"], words["agreement"]) for words in shown] == [("100%", "100.0%")] * 2


def test_telling_asks_no_network(planted: Callable[..., Job]) -> None:
    """While it is told, the dense network is on the device of training, the example is not."""
    job = planted()
    parts.cut(job, parts.limits(job)[-1])
    told = job.told()
    answers = job.dense_logits.argmax(1)
    job.dense.to("meta")
    job.network.module.to("meta")
    assert told(answers)["agreement"] == "100.0%"
    assert told((answers + 1) % 4)["agreement"] == "0.0%"


@pytest.mark.parametrize(("lr", "frozen", "said"), [(2e-3, True, 1), (2e-3, False, 0), (None, True, 0)])
def test_a_large_rate_is_told_where_statistics_stand_still(
    lr: float | None, frozen: bool, said: int, planted: Callable[..., Job]
) -> None:
    job = planted(lr=lr)
    for stage in ("one", "two"):
        objective = Distill(learning.task(job.network))
        objective.needs = replace(objective.needs, frozen_statistics=frozen)
        parts.learn(job, objective, 1, stage)
    found = [w for w in job.warnings if "large steps may ruin the network; 0.0003 is usual" in w]
    assert len(found) == said
