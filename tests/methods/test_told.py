"""What progress shows while a cut network learns: MACs, and the agreement of now, not that of the last cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from edgeprune import train
from edgeprune.methods import parts
from edgeprune.methods.job import Job


def test_agreement_is_told_anew_at_each_validation(
    planted: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []

    @contextmanager
    def bar(name: str, total: int, **_: Any) -> Iterator[Callable[..., None]]:
        yield lambda steps, **words: shown.append(words)

    monkeypatch.setattr(train, "bar", bar)
    job = planted(lr=0.05, bn_recal=False)
    parts.cut(job, parts.limits(job)[-1])
    assert job.trace[-1]["agreement_after_cut"] == 1.0
    assert parts._told(job, None)["agreement"] == "100.0%", "before the first look, what the cut left"
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
