"""Every method that counts its work: useless channels go and no others, images are counted alike, a kill is no loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgeprune import catalog, checkpoint, inference, train
from edgeprune.commands.prune import prune
from edgeprune.errors import UsageError
from edgeprune.methods import learning, parts, work
from edgeprune.methods.baselines import AdaptThenPrune, PruneThenAdapt, TwoStage, Uniform
from edgeprune.methods.itmc import ITMC
from edgeprune.methods.job import Job
from edgeprune.methods.tcp import TCP
from edgeprune.objectives.distill import Distill
from edgeprune.options import PruneOptions

from .conftest import USELESS

OURS = ("tcp", "itmc", "tana", "distill", "prune-then-adapt", "two-stage", "adapt-then-prune", "uniform")
NEEDY = ("tcp", "itmc", "prune-then-adapt", "two-stage")
FINDERS = [
    *(TCP(variant=v, batches=2) for v in ("paper", "code", "max", "source")),
    ITMC(teacher="fixed", batches=2),
    *(ITMC(score=s, teacher="fixed", batches=2, source=1.0) for s in ("student", "source")),
    PruneThenAdapt(score="taylor-labels"),
    TwoStage(cuts=3),
    AdaptThenPrune(score="taylor"),
]


@pytest.mark.parametrize("method", FINDERS, ids=repr)
def test_useless_channels_go_and_no_others(method: Any, planted: Callable[..., Job]) -> None:
    """10 of 16 in one layer and 6 of 16 in the other: which, and how many in each, has to be found."""
    # The student must differ from its teacher for distillation to say anything: a little training before the cut.
    job = planted(recover=1.0) if isinstance(method, ITMC) else planted()
    method(job)
    kept = {root: list(range(16)) for root in USELESS}
    for plan in job.plans:
        for one in plan.cuts:
            kept[one.root] = [kept[one.root][i] for i in one.keep]
    assert {root: tuple(sorted(set(range(16)) - set(k))) for root, k in kept.items()} == USELESS


def test_uniform_takes_the_same_share_everywhere(planted: Callable[..., Job]) -> None:
    job = planted(rank="global")
    Uniform(score="taylor")(job)  # which by itself takes 10 and 6
    assert {cut.root: len(cut.keep) for cut in job.plans[-1].cuts} == {"first": 8, "second": 8}


@pytest.mark.parametrize("name", OURS)
def test_equal_work(name: str, options: PruneOptions) -> None:
    """With --recover 6, 48 images after the first cut, to half a step for each time that training begins."""
    found = prune(replace(options, method=name, iterations=1 if name == "prune-then-adapt" else 3))
    seen = sum(cut.get("images", 0) for cut in found.cuts)
    assert abs(seen - 6 * 8) <= 3 * 8  # half a step of 16 images, or of 24 with a strong view, for each
    assert found.macs <= 0.5 * found.dense_macs
    assert "agreement_after_recovery" in found.cuts[-1]


def test_chance_is_drawn_by_the_seed(planted: Callable[..., Job]) -> None:
    drawn = []
    for seed in (0, 0, 1):
        job = planted(score="random", seed=seed)
        drawn.append(parts.score(job, parts.couplings(job))["first"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("frozen", [True, False])
def test_statistics_that_an_objective_froze_stay(frozen: bool, planted: Callable[..., Job]) -> None:
    job = planted()
    norm = nn.BatchNorm2d(3)
    job.network.module = nn.Sequential(norm, job.network.module)
    job.network.classifier = f"1.{job.network.classifier}"
    job.dense = copy.deepcopy(job.network.module)
    objective = Distill(learning.task(job.network))
    objective.needs = replace(objective.needs, frozen_statistics=frozen)
    work.learn(job, objective, 1.0, "recover")
    assert (dict(norm.named_buffers())["running_mean"].abs().sum() == 0) == frozen


@pytest.mark.parametrize("method", [PruneThenAdapt(), TwoStage()])
def test_a_baseline_of_the_cloud_model_says_when_it_is_given_another(
    method: Any, planted: Callable[..., Job]
) -> None:
    for objective, told in (("source", False), ("mcc", True)):
        job = planted()
        job.network.history.append({"command": "adapt", "objective": objective})
        method(job)
        found = [w for w in job.warnings if "adapted already (" in w]
        assert ["adapted already (mcc); the baseline begins with" in w for w in found] == [True] * told


def test_passes_add_up(planted: Callable[..., Job]) -> None:
    assert work.shares(planted(iterations=1, recover=3.0)) == [3.0]
    assert work.shares(planted(iterations=3, recover=3.0, between=0.5)) == [0.5, 0.5, 2.0]
    assert work.shares(planted(iterations=5, recover=2.0, between=0.5)) == [0.25] * 4 + [1.0]


def test_a_step_costs_what_it_shows(planted: Callable[..., Job]) -> None:
    """48 target and 40 source images, 16 of each in a step."""
    job = planted()
    assert work.images_a_step(job, parts.chosen_objective(job)) == 16
    assert work.images_a_step(job, work.adapting(job)) == 32
    assert work.images_a_step(job, work.adapting(planted(objective="mcc"))) == 32
    assert work.images_a_step(job, work.adapting(planted(objective="fixmatch"))) == 48
    assert work.steps(job, work.adapting(job), 2.0) == 3


class Killed(BaseException):
    pass


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The process dies once after each cut and once after each training, and nothing is cleaned up."""
    passed: list[str] = []
    cut, fit = parts.cut, train.fit

    def once(name: str) -> None:
        if name not in passed:
            passed.append(name)
            raise Killed

    def killed_cut(job: Any, ceilings: Any, number: int = 1, *rest: Any) -> Any:
        found = cut(job, ceilings, number, *rest)
        once(f"cut {number}")
        return found

    def killed_fit(*words: Any, **named: Any) -> train.Fit:
        found = fit(*words, **named)
        once(named["stage"])
        return found

    monkeypatch.setattr(parts, "cut", killed_cut)
    monkeypatch.setattr(train, "fit", killed_fit)
    return passed


KILLED = ["tcp", "itmc", "two-stage", "adapt-then-prune", "prune-then-adapt", "uniform", "distill"]


@pytest.mark.parametrize("name", KILLED)
def test_a_kill_anywhere_changes_nothing(
    name: str, options: PruneOptions, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = replace(options, method=name, iterations=2, recover=4.0)
    whole = prune(replace(words, output=tmp_path / "whole"))
    passed = request.getfixturevalue("fragile")
    for _ in range(20):
        try:
            found = prune(replace(words, resume=True))
            break
        except Killed:
            continue
    assert len(passed) >= 4
    assert found.cuts == whole.cuts
    assert found.warnings == whole.warnings
    assert [list(cut) for cut in found.cuts] == [list(cut) for cut in whole.cuts]  # tables have columns by it
    entries = checkpoint.read(tmp_path / "slim", []).history
    cuts = [entry["trace"] for entry in entries if entry["command"] == "cut"]
    assert cuts == list(whole.cuts)
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "slim"))
    assert all(torch.equal(left[key], right[key]) for key in left | right)


@pytest.mark.parametrize("name", NEEDY)
def test_a_method_that_needs_source_says_so(name: str, options: PruneOptions, tmp_path: Path) -> None:
    assert "source" in catalog.METHODS[name].needs
    with pytest.raises(
        UsageError, match=f"--method {name} learns from labelled source images: give --source DIR"
    ):
        prune(replace(options, method=name, source=None))
    assert not (tmp_path / "slim").exists()


def test_adapt_then_prune_goes_without_source_unless_told(options: PruneOptions) -> None:
    bare = replace(options, method="adapt-then-prune", source=None, iterations=1, recover=1.0)
    assert prune(bare).macs
    with pytest.raises(UsageError, match="adapt-then-prune learns from labelled source"):
        prune(replace(bare, set=("tune=source",), force=True))


def test_a_wrong_knob_suggests_the_nearest(options: PruneOptions) -> None:
    for method, word, message in (
        ("tcp", "varient=code", "tcp has no knob 'varient': did you mean 'variant'"),
        ("tcp", "variant=cod", "did you mean 'code'"),
        ("itmc", "tau=warm", "expected a number"),
        ("two-stage", "source_shar=1", "did you mean 'source_share'"),
    ):
        with pytest.raises(UsageError, match=message):
            prune(replace(options, method=method, set=(word,)))


def test_source_alone_leaves_target_statistics(planted: Callable[..., Job]) -> None:
    """Batch-norm follows the images that a network is deployed on, also where only source was learned from."""
    job = planted(recover=2.0, lr=1e-9)
    AdaptThenPrune(tune="source")(job)
    norm = job.network.module.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    left = norm.running_mean.clone()
    means = []
    for pixels in (job.target, job.source):
        assert pixels is not None
        inference.reestimate_batchnorm(job.network.module, pixels, job.network.preprocess)
        means.append(norm.running_mean.clone())
    torch.testing.assert_close(left, means[0], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(means[0], means[1], atol=1e-2)


def test_a_teacher_that_adapts_on_has_its_own_width(options: PruneOptions) -> None:
    """A discriminator for the teacher's features, not for those that the student still has."""
    words = replace(options, method="itmc", objective="dann", iterations=2, recover=12.0)
    assert prune(replace(words, set=("batches=1",))).cuts[-1]["images_beside"] > 0


def test_short_stages_add_up(planted: Callable[..., Job]) -> None:
    """Seven stages of 0.4 passes over 48 images, 32 a step: half a step each, and 4 in all, not 0 or 7."""
    job = planted(batch=16)
    objective = work.adapting(parts.as_if(job, objective="mcc"))
    assert work.images_a_step(job, objective) == 32
    counts = [work.due(job, objective, 0.4) for _ in range(7)]
    assert sum(counts) == round(7 * 0.4 * 48 / 32)
    assert max(counts) == 1
    assert abs(job.owed["student"]) <= 16


def test_too_little_to_train_on_is_told(options: PruneOptions) -> None:
    found = prune(replace(options, method="distill", iterations=1, recover=0.1))
    assert any("--recover 0.1: nothing was trained after the cut" in one for one in found.warnings)
    words = replace(options, method="tcp", force=True)
    for cuts, recover, told in ((6, 2.0, True), (2, 4.0, False), (6, 0.1, False)):
        found = prune(replace(words, iterations=cuts, recover=recover))
        bare = sum(not cut.get("images") for cut in found.cuts)
        said = f"nothing was trained after {bare} of {cuts} cuts: passes there are less than a step"
        assert any(said in one for one in found.warnings) == told


def test_chance_follows_the_seed_alone(options: PruneOptions) -> None:
    """What an objective draws is the same whatever was drawn before: a run that resumes has drawn less."""
    network = checkpoint.read(Path(options.model))
    torch.manual_seed(3)
    first = learning.make(learning.kind_of("dann", source=True), network).state_dict()
    torch.rand(5)
    after = torch.rand(1)
    torch.manual_seed(3)
    torch.rand(5)
    assert torch.equal(torch.rand(1), after)  # and takes no number from the others
    second = learning.make(learning.kind_of("dann", source=True), network).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(4)
    third = learning.make(learning.kind_of("dann", source=True), network).state_dict()
    assert not all(torch.equal(first[name], third[name]) for name in first)
