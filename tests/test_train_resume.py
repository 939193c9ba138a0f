"""The loop when it is stopped, or diverges: what is on disk is whole, and what it keeps is said plainly."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune import optimise, snapshot, train
from edgeprune.data.pixels import Pixels
from edgeprune.errors import CheckpointError, Interrupted
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.objectives.cdan import CDAN
from edgeprune.objectives.fixmatch import FixMatch
from edgeprune.objectives.mcc import MCC
from edgeprune.objectives.nrc import NRC
from edgeprune.objectives.shot import SHOT
from edgeprune.objectives.source import Source
from edgeprune.objectives.swmmd import SWMMD
from edgeprune.run import Run
from edgeprune.train import Fit, Settings
from edgeprune.waist import Batch, Needs, Objective, Step, Task

TASK = Task(6, 3)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.drop(self.body(x).flatten(1))))


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(Tiny().eval(), "x", Preprocess((8, 8)), ("a", "b", "c"), "head")


def images(seed: int, labelled: bool = False) -> Pixels:
    random = np.random.default_rng(seed)
    data = torch.from_numpy(random.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8))
    return Pixels(data, torch.arange(20) % 3 if labelled else None, [str(i) for i in range(20)])


def settings(**more: Any) -> Settings:
    return Settings(**{"steps": 14, "batch": 6, "lr": 1e-2, "device": "cpu", "save_every": 4, **more})


def run_in(path: Path) -> Run:
    return Run.create(path, command="adapt", model="tiny", config={}, resume=True)


def weights(net: Network) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def fit(net: Network, objective: Objective, how: Settings, run: Run | None = None) -> Fit:
    return train.fit(net, objective, images(1), images(2, labelled=True), how, run=run)


def made(kind: type[Objective]) -> Objective:
    torch.manual_seed(5)
    return kind(TASK)


def at_step(objective: Objective, wanted: int, act: Any) -> Objective:
    """The objective, which calls `act` in the middle of one step."""
    terms = objective.terms

    def instead(source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        if step.number == wanted:
            act()
        return terms(source, target, step)

    objective.terms = instead  # type: ignore[method-assign]
    return objective


def fails() -> None:
    raise RuntimeError("power cut")


def interrupts() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("kind", [CDAN, FixMatch, SHOT, NRC, SWMMD])
@pytest.mark.parametrize(("wanted", "ema"), [(2, 0.9), (7, 0.0), (13, 0.9)])
def test_a_run_cut_short_goes_on_to_the_same_weights(
    kind: type[Objective], ema: float, wanted: int, tmp_path: Path
) -> None:
    undisturbed, resumed = network(), network()
    with run_in(tmp_path / "a") as run:
        expected = fit(undisturbed, made(kind), settings(ema=ema), run)
        lines = run.metrics()
    with pytest.raises(RuntimeError, match="power cut"), run_in(tmp_path / "b") as run:
        fit(resumed, at_step(made(kind), wanted, fails), settings(ema=ema), run)
    # Before the first snapshot the stage begins again, from the network that the caller opens again.
    resumed, torch_state = network(0 if wanted < 4 else 9), torch.get_rng_state()
    objective = made(kind)
    torch.set_rng_state(torch_state)
    with run_in(tmp_path / "b") as run:
        assert fit(resumed, objective, settings(ema=ema), run) == expected
        assert run.metrics() == lines  # nothing twice, nothing lost
    assert equal(weights(undisturbed), weights(resumed))


@pytest.mark.parametrize("wanted", [0, 5, 13])
def test_ctrl_c_waits_for_the_whole_step(wanted: int, tmp_path: Path) -> None:
    undisturbed, resumed = network(), network(9)
    fit(undisturbed, made(CDAN), settings(ema=0.8))
    with run_in(tmp_path) as run, pytest.raises(Interrupted) as caught:
        fit(network(), at_step(made(CDAN), wanted, interrupts), settings(ema=0.8), run)
    expected = f"stopped at step {wanted + 1} of 14 (adapt); go on with --resume ({tmp_path})"
    assert str(caught.value) == expected
    assert snapshot.read(tmp_path / "resume" / "adapt")[1]["step"] == wanted + 1
    with run_in(tmp_path) as run:
        fit(resumed, made(CDAN), settings(ema=0.8), run)
        assert "adapt: resumed at step" in (tmp_path / "log.txt").read_text()
    assert equal(weights(undisturbed), weights(resumed))


def test_a_second_ctrl_c_does_not_wait_and_leaves_the_last_snapshot(tmp_path: Path) -> None:
    def twice() -> None:
        interrupts()
        interrupts()

    undisturbed, resumed = network(), network(9)
    fit(undisturbed, made(MCC), settings())
    with run_in(tmp_path) as run, pytest.raises(Interrupted, match="stopped at step 6 of 14"):
        fit(network(), at_step(made(MCC), 6, twice), settings(), run)
    assert snapshot.read(tmp_path / "resume" / "adapt")[1]["step"] == 4
    with run_in(tmp_path) as run:
        fit(resumed, made(MCC), settings(), run)
    assert equal(weights(undisturbed), weights(resumed))


def test_without_a_run_there_is_nothing_to_resume() -> None:
    with pytest.raises(Interrupted) as caught:
        fit(network(), at_step(made(MCC), 3, interrupts), settings())
    assert str(caught.value) == "stopped at step 4 of 14 (adapt)"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_held_interrupts() -> None:
    reached = []

    def work() -> None:
        with snapshot.held_interrupts():
            interrupts()
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached
    mine: Any = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGINT, mine)
    try:
        with snapshot.held_interrupts() as check:
            assert signal.getsignal(signal.SIGINT) is mine
            check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_damaged_snapshot_says_so(tmp_path: Path) -> None:
    with run_in(tmp_path) as run:
        (run.resume_dir / "adapt").write_bytes(b"half of it")
        with pytest.raises(CheckpointError, match=r"adapt: a damaged snapshot .*; start again with --force"):
            fit(network(), made(MCC), settings(), run)


def test_dropout_depends_on_the_seed_alone() -> None:
    found = []
    for number, seed in ((1, 0), (2, 0), (3, 1)):
        net, objective = network(), made(MCC)
        torch.manual_seed(number)
        fit(net, objective, settings(seed=seed))
        found.append(weights(net))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_the_average_of_weights_is_the_plain_one() -> None:
    live, averaged, seen = network(), network(), []
    objective = made(Source)
    terms = objective.terms

    def watch(source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        seen.append(live.module.get_parameter("head.weight").detach().double().numpy().copy())
        return terms(source, target, step)

    objective.terms = watch  # type: ignore[method-assign]
    fit(live, objective, settings())
    fit(averaged, made(Source), settings(ema=0.5))
    after = [*seen[1:], live.module.get_parameter("head.weight").detach().double().numpy()]
    mean = after[0]
    for step in range(1, 14):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * after[step]
    np.testing.assert_allclose(averaged.module.get_parameter("head.weight").detach(), mean, atol=1e-6)


@pytest.mark.parametrize("kind", [MCC, FixMatch])
def test_statistics_do_not_depend_on_the_source_or_a_second_view(kind: type[Objective]) -> None:
    found = []
    for seed in (2, 3):
        net = network()
        before = weights(net)
        how = settings(lr=0.0, validations=1)
        loop = train._Loop(
            net, made(kind), (images(1), images(seed, labelled=True), None), how, None, None, "adapt"
        )
        for number in range(5):
            loop._step(Step(number, 5))
        loop.close()
        found.append(weights(net))
        assert not torch.equal(found[-1]["body.1.running_mean"], before["body.1.running_mean"])
        assert int(found[-1]["body.1.num_batches_tracked"]) == 5
    assert equal(*found)


@pytest.mark.parametrize("worth", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_rolled_back(worth: float, tmp_path: Path) -> None:
    class Diverges(Objective):
        needs = Needs()

        def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
            assert target is not None
            return {"worse": target.logits.sum() * (worth if step.number > 7 else 0.0)}

    net = network()
    with run_in(tmp_path) as run:
        result = fit(net, Diverges(TASK), settings(), run)
    assert result.chosen_step <= 8
    assert all(torch.isfinite(v).all() for v in weights(net).values())
    expected = f"training collapsed onto few classes (adapt); rolled back to step {result.chosen_step}: "
    assert result.warnings == [expected + "try fewer steps or a smaller learning rate"]
    assert result.warnings[0] in (tmp_path / "log.txt").read_text()


def test_a_finished_stage_comes_back_in_eval_mode_with_its_random_state(tmp_path: Path) -> None:
    with run_in(tmp_path) as run:
        first = fit(network(), made(CDAN), settings(), run)
        state = torch.get_rng_state()
        again = network(9)
        again.module.train()
        assert fit(again, at_step(made(CDAN), 0, fails), settings(), run) == first
        assert not any(m.training for m in again.module.modules())
        assert torch.equal(torch.get_rng_state(), state)
        assert not (run.resume_dir / "adapt").exists()


def test_sgd_on_several_batches_a_step_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    how = settings(optimizer="sgd", accumulate=3, decay="inverse")
    undisturbed, resumed = network(), network()
    fit(undisturbed, made(SHOT), how)
    with pytest.raises(RuntimeError, match="power cut"), run_in(tmp_path / "b") as run:
        fit(resumed, at_step(made(SHOT), 10, fails), how, run)
    with run_in(tmp_path / "b") as run:
        fit(resumed, made(SHOT), how, run)
    assert equal(weights(undisturbed), weights(resumed))


def test_a_frozen_classifier_stays_and_the_rest_moves() -> None:
    net = network()
    before = weights(net)
    with optimise.learning(net, SHOT.needs):
        loop = train._Loop(
            net, made(SHOT), (images(1), None, None), settings(weight_decay=0.5), None, None, "adapt"
        )
        loop._step(Step(0, 5))
        loop.close()
    after = weights(net)
    assert all(torch.equal(after[k], before[k]) for k in after if k.startswith("head"))
    assert not torch.equal(after["body.0.weight"], before["body.0.weight"])
