"""SWMMD as a method: its score is a derivative, dead channels leave, the loss goes on over removals, kills do none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeprune import inference, train
from edgeprune.commands.prune import prune
from edgeprune.errors import UsageError
from edgeprune.methods import learning, parts
from edgeprune.methods.job import Job
from edgeprune.methods.swmmd import SWMMDPruning, Watched, removals
from edgeprune.objectives.swmmd import SWMMD
from edgeprune.options import PruneOptions
from edgeprune.prune import graph
from edgeprune.prune.coupling import Couplings
from edgeprune.waist import Batch, Objective, Step, Task

from .test_admp import DEAD, striped


class Net(nn.Module):
    """A residual stream of two batch-norms, a layer with one, a depthwise chain with two, and a layer with none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.one_norm = nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.back, self.back_norm = nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)
        self.wide, self.wide_norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
        self.deep, self.deep_norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.bare = nn.Linear(6, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor, scale: dict[str, Tensor] | None = None) -> Tensor:
        def by(name: str, y: Tensor) -> Tensor:
            if scale is None:
                return y
            return y * scale[name].reshape(1, -1, *[1] * (y.ndim - 2))

        x = by("stem", self.norm(self.stem(x)))
        y = by("one", self.one_norm(self.one(x.relu()))).relu()
        x = (x + by("stem", self.back_norm(self.back(y)))).relu()
        x = by("wide", self.deep_norm(self.deep(self.wide_norm(self.wide(x)).relu()))).relu().mean((2, 3))
        bare = nn.functional.linear(x, self.bare.weight)
        out: Tensor = self.head((by("bare", bare) + self.bare.bias).relu())
        return out


class Nothing(Objective):
    """An objective that is only asked for its parameters."""


def watched(
    module: nn.Module, couplings: Couplings, power: float, monkeypatch: pytest.MonkeyPatch
) -> Watched:
    class Its:
        network = type("Its", (), {"module": module})

    monkeypatch.setattr(parts, "couplings", lambda job: couplings)
    return Watched(Its(), Nothing(Task(7, 3)), power)  # type: ignore[arg-type]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_score_is_the_change_when_a_channel_goes(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """dL/dg g + dL/db b is the derivative by a scale on the channel; on the stream, by one on all that adds to it."""
    net = Net().double()
    g = torch.Generator().manual_seed(2)
    for norm in (net.norm, net.one_norm, net.back_norm, net.wide_norm, net.deep_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=g)
        nn.init.normal_(norm.bias, std=0.5, generator=g)
    x = [torch.randn(6, 3, 5, 5, generator=g, dtype=torch.float64) for _ in range(2)]
    couplings = graph.find(net, x[0][:1], verify=False)
    found = watched(net, couplings, power, monkeypatch)
    assert found.bare == ["bare"]
    assert {c.root for c in couplings} == {"stem", "one", "wide", "bare"}
    expected = {c.root: torch.zeros(c.width, dtype=torch.float64) for c in couplings}
    net.train()
    for images in x:
        net.zero_grad()
        net(images).square().mean().backward()
        found.before_update(Step(0, 1))
        scale = {c.root: torch.ones(c.width, dtype=torch.float64) for c in couplings}
        for root, one in scale.items():
            for channel in range(len(one)):
                ends = []
                for step in (1e-5, -1e-5):
                    one[channel] = 1 + step
                    with torch.no_grad():
                        ends.append(float(net(images, scale).square().mean()))
                one[channel] = 1
                expected[root][channel] += abs((ends[0] - ends[1]) / 2e-5) ** power
    assert int(found.steps) == 2
    scores = found.scores()
    for root in ("stem", "one", "bare"):
        torch.testing.assert_close(scores[root], expected[root], rtol=1e-4, atol=1e-10)
    # Two norms in a row: the first comes before a ReLU and a batch-norm that scales it out again, so it adds ~nothing.
    torch.testing.assert_close(scores["wide"], expected["wide"] / 2**power, rtol=2e-2, atol=1e-5)


def test_training_reads_it_off_without_a_pass_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    job = striped(between=1.0, recover=2.0)
    forwards: list[bool] = []
    job.network.module.register_forward_hook(lambda m, *_: forwards.append(m.training))
    steps: list[int] = []
    step = train._Loop._step

    def counted(self: Any, at: Step) -> Any:
        steps.append(at.number)
        return step(self, at)

    monkeypatch.setattr(train._Loop, "_step", counted)
    SWMMDPruning(remove=1.0, warm=4.0, tune="both")(job)
    assert steps
    assert sum(forwards) == 2 * len(steps)  # one of the source and one of the target


@pytest.mark.parametrize(
    ("knobs", "last"),
    [({}, (False, False)), ({"tune": "both"}, (True, True)), ({"distill": False}, (True, True))],
    ids=str,
)
def test_what_is_learned_after_the_last_removal(
    knobs: dict[str, Any], last: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the source is learned from, and whether statistics stand still meanwhile."""
    job = striped(recover=3.0)
    job.partial = True
    seen: dict[str, tuple[bool, bool]] = {}
    fit = train.fit

    def spy(network: Any, objective: Objective, *given: Any, **named: Any) -> train.Fit:
        seen[named["stage"]] = objective.needs.source, objective.needs.frozen_statistics
        return fit(network, objective, *given, **named)

    monkeypatch.setattr(train, "fit", spy)
    SWMMDPruning(remove=0.25, warm=1.0, **knobs)(job)
    assert seen == {"warm": (True, True), "recover-1": (True, True), "recover-2": last}


@pytest.mark.parametrize("normalise", ["none", "layer"])
def test_dead_channels_leave_and_no_others(normalise: Any) -> None:
    job = striped(recover=2.0)
    SWMMDPruning(warm=2.0, remove=0.25, normalise=normalise)(job)
    assert len(job.plans) == 2
    assert {r: tuple(sorted(set(range(16)) - set(k))) for r, k in job.kept.items()} == DEAD
    assert not job.warnings


def test_layers_without_batch_norm_are_said(planted: Callable[..., Job]) -> None:
    job = planted(recover=1.0)
    SWMMDPruning(remove=0.25)(job)
    said = "swmmd: 2 couplings have no batch-norm and are ranked by their weights' gradients: first, second"
    assert job.warnings.count(said) == 1


def test_the_warm_passes_are_counted(planted: Callable[..., Job]) -> None:
    job = planted(recover=4.0, iterations=2)
    SWMMDPruning(warm=2.0)(job)
    assert [entry.get("images_before") for entry in job.trace] == [96, None]


def test_how_often_a_share_is_removed() -> None:
    job = striped()
    assert [removals(job, share) for share in (0.1, 0.25, 0.3, 1.0)] == [5, 2, 2, 1]


def test_no_ramp_and_weights_that_go_on_over_removals(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    averages: list[Tensor] = []
    terms = SWMMD.terms

    def spy(self: SWMMD, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        seen.append(step.progress)
        averages.append(self.average.clone())
        return terms(self, source, target, step)

    monkeypatch.setattr(SWMMD, "terms", spy)
    job = striped(recover=2.0)
    first = inference.logits_of(job.dense, job.target, job.network.preprocess).softmax(1).mean(0)
    SWMMDPruning(warm=1.0, remove=0.25)(job)
    assert set(seen) == {1.0}
    torch.testing.assert_close(averages[0], first)
    assert len({tuple(a.tolist()) for a in averages}) == len(averages)  # never back to the start
    averages.clear()
    SWMMDPruning(warm=1.0, remove=0.25, momentum=1.0)(striped(recover=2.0))
    assert all(a.tolist() == [0.25] * 4 for a in averages)  # plain MMD


def test_a_cut_that_nothing_was_trained_for_is_told() -> None:
    """--between 0: the second cut has no gradients of its own to go by."""
    job = striped(recover=2.0, between=0.0)
    SWMMDPruning(warm=1.0, remove=0.25)(job)
    assert [w for w in job.warnings if w.startswith("swmmd: nothing was trained before cut 2, so --score")]


@pytest.mark.parametrize("history", [[], [{"partial": True}], [{"partial": False}]], ids=str)
def test_a_network_of_all_classes_is_told(history: list[dict[str, Any]]) -> None:
    job = striped()
    job.network.history.extend(history)
    SWMMDPruning()(job)
    found = [w for w in job.warnings if "this network was adapted to all of them" in w]
    assert len(found) == (history == [{"partial": False}])


def whole(options: PruneOptions, *knobs: str) -> PruneOptions:
    return replace(options, method="swmmd", iterations=2, recover=4.0, set=("warm=4", *knobs))


@pytest.mark.parametrize("kind", ["macs", "params", "channels"])
def test_every_budget_holds(kind: Any, options: PruneOptions) -> None:
    words: dict[str, Any] = {"macs": None, kind: "0.5"}
    found = prune(replace(whole(options, "distill=false"), rank="threshold", **words))
    assert found.macs <= 0.5 * found.dense_macs or kind != "macs"
    assert found.params <= 0.5 * found.dense_params or kind != "params"
    assert len(found.cuts) == 2
    assert sum(cut["images"] for cut in found.cuts) == pytest.approx(32, abs=8)


class Killed(BaseException):
    pass


def test_a_kill_anywhere_changes_nothing(
    options: PruneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each cut and each part of training; what was read off the gradients is not lost."""
    words = whole(options)
    first = prune(replace(words, output=tmp_path / "whole"))
    passed: list[str] = []

    def once(name: str) -> None:
        if name not in passed:
            passed.append(name)
            raise Killed

    cut, fit, step = parts.cut, train.fit, train._Loop._step

    def killed_cut(*given: Any) -> Any:
        found = cut(*given)
        once(f"cut {given[2]}")
        return found

    def killed_fit(*given: Any, **named: Any) -> Any:
        found = fit(*given, **named)
        once(named["stage"])
        return found

    def killed_step(self: Any, at: Step) -> Any:
        if at.number == 1:
            once(f"{self.stage} step 1")
        return step(self, at)

    settings = learning.settings
    monkeypatch.setattr(
        learning, "settings", lambda *a, **named: replace(settings(*a, **named), save_every=1)
    )
    monkeypatch.setattr(parts, "cut", killed_cut)
    monkeypatch.setattr(train, "fit", killed_fit)
    monkeypatch.setattr(train._Loop, "_step", killed_step)
    found = None
    while found is None:
        try:
            found = prune(replace(words, resume=True))
        except Killed:
            continue
    assert passed[:3] == ["warm step 1", "warm", "cut 1"]
    assert len(passed) >= 7
    assert found.cuts == first.cuts
    assert found.warnings == first.warnings
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "slim"))
    assert all(torch.equal(left[key], right[key]) for key in left | right)


def test_helpful_errors(options: PruneOptions, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--method swmmd learns from labelled source images: give --source DIR"
    ):
        prune(replace(whole(options), source=None))
    with pytest.raises(UsageError, match="swmmd has no knob 'remov': did you mean 'remove'"):
        prune(replace(whole(options), set=("remov=1",)))
    assert not (tmp_path / "slim").exists()
