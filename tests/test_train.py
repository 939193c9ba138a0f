"""The loop: the same seed gives the same weights, a kill at any step changes nothing, and labels stay out."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune import inference, train, validate
from edgeprune.data.pixels import Pixels
from edgeprune.errors import Interrupted, UsageError
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.objectives.cdan import CDAN
from edgeprune.objectives.distill import Distill
from edgeprune.objectives.mcc import MCC
from edgeprune.objectives.shot import SHOT
from edgeprune.objectives.source import Source
from edgeprune.run import Run
from edgeprune.train import Settings
from edgeprune.waist import Batch, Needs, Objective, Step, Task

TASK = Task(8, 2)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).flatten(1))
        return out


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(Tiny().eval(), "x", Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3), ("a", "b"), "head")


def images(count: int, shifted: bool, labelled: bool) -> Pixels:
    """Two classes told by which half is brighter; the target is dimmer and greenish."""
    random = np.random.default_rng(5 + shifted)
    labels = np.arange(count) % 2
    pixels = random.normal(100, 20, (count, 8, 8, 3))
    for i, label in enumerate(labels):
        pixels[i, 4 * label : 4 * label + 4, :, label] += 70
    if shifted:
        pixels = 0.5 * pixels + np.array([20, 60, 0])
    data = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
    names = [str(i) for i in range(count)]
    return Pixels(data, torch.from_numpy(labels) if labelled else None, names, [], ("a", "b"))


def settings(steps: int, **more: Any) -> Settings:
    return Settings(
        steps=steps, batch=8, lr=1e-2, device="cpu", save_every=3, flip=False, crop=(1.0, 1.0), **more
    )


def weights(net: Network) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def run_in(path: Path, resume: bool = False) -> Run:
    return Run.create(path, command="adapt", model="tiny", config={}, resume=resume)


def undisturbed(objective: Objective, steps: int = 12) -> dict[str, Tensor]:
    net = network()
    train.fit(net, objective, images(24, True, False), images(24, False, True), settings(steps))
    return weights(net)


def test_the_same_seed_gives_the_same_weights() -> None:
    def once() -> dict[str, Tensor]:
        torch.manual_seed(1)
        return undisturbed(CDAN(TASK))

    assert equal(once(), once())


def test_ctrl_c_writes_a_snapshot_and_resuming_gives_the_same_weights(tmp_path: Path) -> None:
    class Stops(MCC):
        def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
            if step.number == 7 and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                raise KeyboardInterrupt
            return super().terms(source, target, step)

    expected = undisturbed(MCC(TASK))
    net = network()
    with (
        run_in(tmp_path / "r") as run,
        pytest.raises(Interrupted, match=r"stopped at step 7 of 12 .* --resume"),
    ):
        train.fit(net, Stops(TASK), images(24, True, False), images(24, False, True), settings(12), run=run)
    net = network(seed=99)  # whatever was in memory is lost
    with run_in(tmp_path / "r", resume=True) as run:
        train.fit(net, Stops(TASK), images(24, True, False), images(24, False, True), settings(12), run=run)
        steps = [m["step"] for m in run.metrics() if "validators" in m]
    assert equal(weights(net), expected)
    assert steps == sorted(set(steps))


_KILLED = """
import sys, time, importlib.util
from pathlib import Path
spec = importlib.util.spec_from_file_location("t", sys.argv[1]); t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
class Slow(t.SHOT):
    def terms(self, source, target, step):
        print(step.number, flush=True); time.sleep(0.05)
        return super().terms(source, target, step)
with t.run_in(Path(sys.argv[2]), resume=True) as run:
    t.train.fit(t.network(), Slow(t.TASK), t.images(24, True, False), None, t.settings(20, ema=0.9), run=run)
"""


def test_kill_9_at_any_step_changes_nothing(tmp_path: Path) -> None:
    net = network()
    train.fit(net, SHOT(TASK), images(24, True, False), None, settings(20, ema=0.9))
    for wanted in (5, 13):
        call = [sys.executable, "-c", _KILLED, __file__, str(tmp_path / "r")]
        process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= wanted:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.wait()
        time.sleep(0.05)
    again = network(seed=99)
    with run_in(tmp_path / "r", resume=True) as run:
        assert (run.resume_dir / "adapt").is_file()
        train.fit(again, SHOT(TASK), images(24, True, False), None, settings(20, ema=0.9), run=run)
    assert equal(weights(net), weights(again))


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    net = network()
    with run_in(tmp_path / "r") as run:
        source = images(24, False, True)
        first = train.fit(
            net, Source(TASK), images(24, True, False), source, settings(6), run=run, stage="source"
        )
        done = weights(net)
        again = network(seed=5)
        second = train.fit(
            again, Source(TASK), images(24, True, False), source, settings(6), run=run, stage="source"
        )
    assert equal(weights(again), done)
    assert second == first


def test_running_statistics_follow_the_target_alone() -> None:
    net = network()
    source, target = images(64, False, True), images(64, True, False)
    train.fit(net, MCC(TASK), target, source, settings(60, validations=1))
    tracked = net.module.state_dict()["body.1.running_mean"].clone()
    other = network()
    other.module.load_state_dict(net.module.state_dict())
    inference.reestimate_batchnorm(other.module, target, net.preprocess)
    of_target = other.module.state_dict()["body.1.running_mean"].clone()
    inference.reestimate_batchnorm(other.module, source, net.preprocess)
    of_source = other.module.state_dict()["body.1.running_mean"].clone()
    assert (tracked - of_target).norm() < 0.3 * (tracked - of_source).norm()


def test_shot_leaves_the_classifier() -> None:
    net = network()
    head = net.module.state_dict()["head.weight"].clone()
    train.fit(net, SHOT(TASK), images(24, True, False), None, settings(6))
    assert torch.equal(net.module.state_dict()["head.weight"], head)


def test_a_collapse_rolls_back_and_says_so() -> None:
    class Collapse(Objective):
        needs = Needs()

        def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
            assert target is not None
            return {"worse": 100 * target.logits[:, 0].mean() - 100 * target.logits[:, 1].mean()}

    net = network(seed=3)
    target = images(64, True, False)
    train.fit(net, Source(TASK), target, images(64, False, True), settings(40, validations=1), stage="source")
    inference.reestimate_batchnorm(net.module, target, net.preprocess)
    result = train.fit(net, Collapse(TASK), target, None, settings(20))
    assert result.chosen_step < 20
    answers = inference.predict(net, target)[1].argmax(1).double().mean()
    assert 0.1 < float(answers) < 0.9
    assert "collapsed" in result.warnings[0]


def test_a_degenerate_start_is_not_what_is_kept() -> None:
    net, target = network(), images(64, True, False)
    with torch.no_grad():
        net.module.state_dict()["head.bias"].copy_(torch.tensor([1.0, -1.0]))  # one class for everything
    kept = train.fit(net, MCC(TASK), target, images(64, False, True), settings(90, select="snd"))
    assert kept.curves[0]["histogram"] == 0
    assert kept.chosen_step > 0
    assert not kept.warnings
    assert inference.evaluate(net, images(64, True, True)) > 0.85


def test_what_keeps_its_last_weights_asks_no_validator() -> None:
    """The source stage trains although `dev` chooses later: it wants images held out, which this stage has not."""
    net = network()
    fit = train.fit(
        net, Source(TASK), images(24, True, False), images(24, False, True), settings(4, select="dev")
    )
    assert fit.chosen_step == 4


def test_a_change_of_statistics_is_nothing_forgotten() -> None:
    """Held-out source images are scored under batch-norm statistics of their own, as they are trained."""
    source, target = images(48, False, True), images(48, True, False)
    net = network()
    train.fit(net, Source(TASK), target, source, settings(60))
    own = inference.evaluate(net, source)
    inference.reestimate_batchnorm(net.module, target, net.preprocess)
    assert inference.evaluate(net, source) < own - 0.05, "under the target's statistics it looks so"
    before = weights(net)
    assert validate.Validator(net, target, source)()["source"] > own - 0.05
    assert equal(before, weights(net))


def test_parts_of_training_go_on_through_the_images() -> None:
    seen: list[int] = []

    class Noted(MCC):
        def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
            assert target is not None
            seen.extend(target.index.tolist())
            return super().terms(source, target, step)

    net = network()
    for begun in (0, 1, 2):
        train.fit(
            net, Noted(TASK), images(24, True, False), images(24, False, True), settings(1), begun=begun
        )
    assert sorted(seen) == list(range(24))


def test_a_network_that_views_its_maps_as_rows_learns() -> None:
    class Viewed(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            maps = self.body[:3](x)
            out: Tensor = self.head(maps.view(len(x), 8, -1).mean(2))
            return out

    torch.manual_seed(0)
    net = Network(Viewed().eval(), "x", Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3), ("a", "b"), "head")
    target, source = images(48, True, False), images(48, False, True)
    train.fit(net, MCC(TASK), target, source, settings(4))
    assert inference.predict(net, target)[1].isfinite().all()


def test_a_teacher_that_nobody_asks_is_not_run() -> None:
    class Dear(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("a forward pass of the dense network")

    target, source = images(24, True, False), images(24, False, True)
    train.fit(network(), MCC(TASK), target, source, settings(2), teacher=Dear())
    with pytest.raises(AssertionError, match="a forward pass of the dense network"):
        train.fit(network(), Distill(TASK), target, source, settings(2), teacher=Dear())


def test_short_stages_keep_their_last_weights_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look was asked for and none is needed to choose; batch-norm is still of plain target images."""
    target, source = images(64, True, False), images(64, False, True)
    seen, unseen = network(), network()
    for one, looks in ((seen, 1), (unseen, 0)):
        objective = MCC(TASK)
        objective.needs = replace(objective.needs, last=True)
        if not looks:
            monkeypatch.setattr(validate.Validator, "__call__", None)
        found = train.fit(one, objective, target, source, Settings(steps=6, batch=16, validations=looks))
        assert (found.chosen_step, len(found.curves)) == (6, 2 * looks)
    for ours, theirs in zip(
        seen.module.state_dict().values(), unseen.module.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_helpful_errors() -> None:
    with pytest.raises(UsageError, match="MCC needs labelled source images"):
        train.fit(network(), MCC(TASK), images(8, True, False), None, settings(2))
    with pytest.raises(UsageError, match="Distill needs a teacher network"):
        train.fit(network(), Distill(TASK), images(8, True, False), None, settings(2))


def test_watched_accuracy_is_written_beside_each_validation_and_changes_nothing(tmp_path: Path) -> None:
    target, source = images(64, True, False), images(64, False, True)
    labelled = images(64, True, True)
    settings = Settings(steps=6, batch=16, validations=3)
    plain, watched = network(), network()
    train.fit(plain, MCC(TASK), target, source, settings)
    with Run.create(tmp_path / "r", command="adapt", model="x", config={}) as run:
        found = train.fit(watched, MCC(TASK), target, source, settings, run=run, watch=labelled)
        lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert len(found.watched) == len(found.curves) == 4
    assert found.watched[
        found.curves.index(next(c for c in found.curves if c["step"] == found.chosen_step))
    ] == (inference.evaluate(watched, labelled))
    assert [line["accuracy"] for line in lines if "validators" in line] == found.watched
    for ours, theirs in zip(plain.module.parameters(), watched.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
