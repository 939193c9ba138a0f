"""Batch-norm statistics after a cut, against a plain reading of what they must satisfy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune import inference, opening, train
from edgeprune.commands import prune as command
from edgeprune.data.batches import normalised
from edgeprune.images import Preprocess
from edgeprune.methods import parts, recalibrate
from edgeprune.methods.admp import ADMP
from edgeprune.methods.auto import AutoPruning
from edgeprune.methods.baselines import AdaptThenPrune, PruneThenAdapt, TwoStage
from edgeprune.methods.dalr import DALR
from edgeprune.methods.distill import DistillPruning
from edgeprune.methods.itmc import ITMC
from edgeprune.methods.job import Job
from edgeprune.methods.swmmd import SWMMDPruning
from edgeprune.model import Network
from edgeprune.objectives.distill import Distill
from edgeprune.objectives.source import Source
from edgeprune.options import PruneOptions
from edgeprune.prune.budget import Budget
from edgeprune.waist import Objective, Task
from tests.methods.conftest import pixels

PRE = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)


class Normed(nn.Module):
    """Two layers with batch-norm; channels of the first can go, and change what enters the second's norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.make, self.one = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.read, self.two = nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        for norm in (self.one, self.two):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.two(self.read(self.one(self.make(x)).relu())).relu().mean((2, 3)))
        return out


def job(*, partial: bool, budget: str = "channels", **words: Any) -> Job:
    network = Network(Normed().eval(), "here", PRE, tuple("abcd"), "head")
    options = PruneOptions(**{"recover": 0.0, "multiple": 1, "floor": 0.0, **words})
    how = Budget.parse(**{"macs": None, "params": None, "channels": None, budget: "0.5"})
    made = Job.of(network, (pixels(64, 30, None), pixels(40, 0, 4)), how, options, None)
    made.partial = partial
    return made


def seen(module: Any, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance (C,) of what enters each norm, float64, each layer normalised by the images' own."""
    x, found = images.double(), []
    for layer, norm in ((module.make, module.one), (module.read, module.two)):
        x = nn.functional.conv2d(x, layer.weight.double(), layer.bias.double(), padding=layer.padding)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        found.append((mean, variance))
        x = nn.functional.batch_norm(
            x, None, None, norm.weight.double(), norm.bias.double(), training=True, eps=norm.eps
        ).relu()
    return found


def behind(module: Any, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance (C,) of the same behind each norm as it stands, before its scale and shift."""
    return [
        (
            (mean - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt(),
            (variance + norm.eps) / (norm.running_var.double() + norm.eps),
        )
        for norm, (mean, variance) in zip((module.one, module.two), seen(module, images), strict=True)
    ]


@torch.no_grad()
def test_a_partial_target_keeps_its_mean_and_variance_behind_every_norm() -> None:
    made = job(partial=True)
    images = normalised(made.target, PRE, torch.arange(64))
    before = behind(made.network.module, images)
    parts.cut(made, parts.limits(made)[-1])
    now = behind(made.network.module, images)
    for root, before_cut, after_cut in zip(("make", "read"), before, now, strict=True):
        keep = made.kept[root]
        assert len(keep) < made.dense_widths[root]
        for was, found in zip(before_cut, after_cut, strict=True):
            torch.testing.assert_close(found, was[keep], rtol=1e-4, atol=1e-5)
    dense, slim = (m.get_buffer("two.running_var") for m in (made.dense, made.network.module))
    assert not torch.allclose(dense[made.kept["read"]], slim, rtol=0.05), "the cut changed nothing"


@torch.no_grad()
@pytest.mark.parametrize("partial", [False, True])
def test_statistics_of_the_target_are_the_targets_after_a_cut(partial: bool) -> None:
    """Always where the target has all classes; and where it lacks some if they were its own before."""
    made = job(partial=partial)
    if partial:
        inference.reestimate_batchnorm(made.network.module, made.target, PRE)
    parts.cut(made, parts.limits(made)[-1])
    module: Any = made.network.module
    for norm, (mean, variance) in zip(
        (module.one, module.two), seen(module, normalised(made.target, PRE, torch.arange(64))), strict=True
    ):
        torch.testing.assert_close(norm.running_mean, mean.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance.float(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_channel_that_nothing_enters_any_more_is_no_trouble() -> None:
    """Its variance on the target falls to 0, and its own, smaller than the target's, would fall below."""
    made = job(partial=True)
    module: Any = made.network.module
    module.two.running_var.fill_(1e-6)
    twin: Any = recalibrate.twin(made)
    for network in (module, twin):
        nn.init.zeros_(network.read.weight[0])
    recalibrate.after(made, module, twin)
    values = [buffer for buffer in module.state_dict().values() if buffer.is_floating_point()]
    assert all(bool(value.isfinite().all()) for value in values)
    assert float(module.two.running_var.min()) == 0
    assert bool((module(normalised(made.target, PRE, torch.arange(4)))).isfinite().all())


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (AutoPruning(), {"iterations": 2, "objective": "auto"}),
        (AdaptThenPrune(), {}),
        (SWMMDPruning(tune="both"), {"iterations": 2}),
        (ITMC(distill=False, source=1.0), {"iterations": 2}),
    ],
)
def test_what_a_cut_moved_stays_while_the_network_learns(
    method: Any, words: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training after a cut finds the statistics that the cut left, and leaves them."""
    kept: list[bool] = []
    fit = train.fit

    def watched(network: Network, objective: Objective, *args: Any, **named: Any) -> Any:
        before = statistics(network.module)
        found = fit(network, objective, *args, **named)
        if made.trace:
            kept.append(all(map(torch.equal, before, statistics(network.module))))
        return found

    monkeypatch.setattr(train, "fit", watched)
    made = job(partial=True, recover=2.0, batch=16, **words)
    method(made)
    assert kept
    assert all(kept)
    for root, norm in (("make", "one"), ("read", "two")):
        was, now = (m.get_buffer(f"{norm}.running_mean") for m in (made.dense, made.network.module))
        left = was[made.kept.get(root, slice(None))]
        assert left.shape == now.shape
        if norm == "two":
            assert not torch.allclose(left, now, rtol=0.01), "the cut moved nothing"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (AutoPruning(), {"iterations": 2}),
        (DistillPruning(), {"iterations": 2}),
        (ITMC(), {"iterations": 2}),
        (SWMMDPruning(), {"iterations": 2}),
        (ADMP(teacher="ema"), {}),
        (DALR(), {"budget": "params"}),
    ],
)
def test_a_student_that_is_taught_ends_with_the_statistics_of_the_target(
    method: Any, words: dict[str, Any]
) -> None:
    made = job(partial=True, recover=2.0, batch=16, **words)
    method(made)
    found = statistics(made.network.module)
    inference.reestimate_batchnorm(made.network.module, made.target, PRE)
    for left, right in zip(found, statistics(made.network.module), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def statistics(module: nn.Module) -> list[Tensor]:
    return [buffer.clone() for name, buffer in module.named_buffers() if "running" in name]


@pytest.mark.parametrize(
    ("words", "history", "expected"),
    [
        ({"method": "swmmd"}, [], True),
        ({"method": "swmmd", "then": "dalr"}, [], True),
        ({"objective": "auto", "set": ("objective.partial=true",)}, [], True),
        ({"objective": "swmmd"}, [], True),
        ({}, [{"command": "adapt", "partial": True}, {"command": "cut"}], True),
        ({}, [{"command": "adapt", "partial": True}, {"command": "prune", "partial": False}], False),
        (
            {"objective": "auto", "set": ("objective.partial=false",)},
            [{"command": "adapt", "partial": True}],
            False,
        ),
        ({"objective": "auto"}, [], False),
        ({"objective": "swmmd", "method": "adapt-then-prune", "set": ("tune=source",)}, [], False),
    ],
)
def test_who_says_that_classes_are_lacking(
    options: PruneOptions,
    words: dict[str, Any],
    history: list[Any],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The method, its objective if it asks one, or the last command that made the network."""
    said: list[bool] = []

    opened = opening.open_network

    def adapted(*args: Any) -> Any:
        network, fresh = opened(*args)
        network.history += history
        return network, fresh

    monkeypatch.setattr(command, "open_network", adapted)
    monkeypatch.setattr(parts, "preview", lambda job, method: said.append(job.partial))
    command.prune(replace(options, dry_run=True, iterations=None, **words))
    assert said == [expected]


@pytest.mark.parametrize("method", [TwoStage(cuts=2), PruneThenAdapt()])
def test_a_cut_on_source_settles_the_statistics_before_it_adapts(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On source alone they follow the source; then they are blended with the target's once, and stay."""
    asked: list[tuple[bool, bool]] = []
    fit = train.fit

    def watched(network: Network, objective: Objective, *args: Any, **named: Any) -> Any:
        asked.append((objective.needs.frozen_statistics, objective.needs.statistics))
        return fit(network, objective, *args, **named)

    monkeypatch.setattr(train, "fit", watched)
    method(job(partial=True, recover=4.0, batch=16, objective="dan"))
    assert len(asked) >= 2
    assert asked == [(False, False)] * (len(asked) - 1) + [(True, True)]


def test_no_recalibration_leaves_training_as_the_objective_says() -> None:
    objective = Source(Task(8, 4))
    recalibrate.keep_statistics(job(partial=True, bn_recal=False), objective)
    assert (objective.needs.frozen_statistics, objective.partial) == (False, False)


def test_what_learns_keeps_the_statistics_of_a_partial_job_alone() -> None:
    for partial in (False, True):
        objective, taught = Source(Task(8, 4)), Distill(Task(8, 4))
        for one, frozen in ((objective, partial), (taught, False)):
            recalibrate.keep_statistics(job(partial=partial), one)
            assert (one.needs.frozen_statistics, one.partial) == (frozen, partial)
    assert recalibrate.twin(job(partial=True, bn_recal=False)) is None
    assert recalibrate.twin(job(partial=False)) is None
