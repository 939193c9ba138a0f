"""TANA: its cumulative sums and its priority against a plain reading, its two recoveries, the whole command."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeprune import records, train
from edgeprune.cli.app import main
from edgeprune.commands.prune import prune
from edgeprune.errors import DataError, UsageError
from edgeprune.methods import parts, work
from edgeprune.methods.job import Job
from edgeprune.methods.tana import TANA, leaving, tails
from edgeprune.options import PruneOptions
from edgeprune.prune import graph
from edgeprune.prune.scores.activation import Activation
from tests.methods.conftest import USELESS, Planted, pixels

Make = Callable[..., Path]


def fewest(share: Any, threshold: float) -> int:
    """K(t) = min{j : the j largest hold t}, read plainly."""
    ordered = sorted(share, reverse=True)
    return next((j for j in range(len(ordered) + 1) if sum(ordered[:j]) >= threshold - 1e-12), len(ordered))


def test_tails_are_the_cumulative_sum() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        share = generator.dirichlet(np.full(9, 0.4))
        found = tails(torch.from_numpy(share)).numpy()
        for threshold in (0.5, 0.8, 0.95, 0.999):
            assert int((found > 1 - threshold + 1e-12).sum()) == fewest(share, threshold)
    assert tails(torch.tensor([0.25] * 4)).tolist() == [1.0, 0.75, 0.5, 0.25]  # of equals the last goes first


def walk(shares: dict[str, Any], level: float, most: float, worth: dict[str, float] | None) -> list[Any]:
    """All (layer, channel) in the order in which they go, by the words of `leaving`."""
    gone: list[tuple[str, int]] = []
    held: list[tuple[str, int]] = []
    taken = dict.fromkeys(shares, 0)
    for step in range(1, round(1 / level) + 1):
        drops = {name: len(p) - fewest(p, 1 - step * level) for name, p in shares.items()}
        rate = {n: drops[n] / len(p) * (worth[n] * drops[n] if worth else 1) for n, p in shares.items()}
        for name in sorted(shares, key=lambda n: -rate[n]):
            order = sorted(range(len(shares[name])), key=lambda c: (shares[name][c], -c))
            for nth in range(taken[name], drops[name]):
                fits = nth < max(1, int(most * len(order)))
                (gone if fits else held).append((name, order[nth]))
            taken[name] = max(taken[name], drops[name])
    return gone + held


@pytest.mark.parametrize("worth", [None, {"a": 1.0, "b": 5.0, "c": 0.2}])
def test_layers_go_by_their_priority(worth: dict[str, float] | None) -> None:
    generator = np.random.default_rng(1)
    shares = {n: generator.dirichlet(np.full(w, 0.3)) for n, w in (("a", 12), ("b", 8), ("c", 20))}

    def priority(root: str, count: int) -> float:
        return count / len(shares[root]) * (worth[root] * count if worth else 1)

    when = leaving({n: torch.from_numpy(p) for n, p in shares.items()}, 0.1, 0.5, priority)
    found = sorted(
        ((n, c) for n, p in when.items() for c in range(len(p))), key=lambda x: float(when[x[0]][x[1]])
    )
    assert found == walk(shares, 0.1, 0.5, worth)


def test_without_priority_one_threshold_holds_for_all() -> None:
    shares = {"a": torch.tensor([0.7, 0.2, 0.1]).double(), "b": torch.tensor([0.05, 0.9, 0.05]).double()}
    when = leaving(shares, 0.02, 1.0, None)
    assert {n: v.tolist() for n, v in when.items()} == {
        "a": pytest.approx([1, 0.3, 0.1]),
        "b": pytest.approx([0.1, 1, 0.05]),
    }


@pytest.mark.parametrize("statistic", ["mean", "rms", "read-mean", "read-rms"])
def test_statistics_are_their_equations(statistic: Any, planted: Callable[..., Job]) -> None:
    job = planted()
    net = Planted().eval().double()
    images = (job.target.take(torch.arange(48)).double() / 255 - 0.5) / 0.5
    with torch.no_grad():
        a = net.first(net.norm(net.stem(images.permute(0, 3, 1, 2))).relu()).relu()
        mean = a.abs().mean((0, 2, 3)) if "mean" in statistic else a.square().mean((0, 2, 3)).sqrt()
        norm = net.first_out.weight.square().sum((0, 2, 3)).sqrt()
        expected = mean * norm if statistic.startswith("read") else mean
    found = TANA(statistic=statistic)._statistics(job, parts.couplings(job))["first"]
    torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("priority", ["share", "cost", "none", "budget"])
def test_it_loses_exactly_the_useless_channels(priority: Any, planted: Callable[..., Job]) -> None:
    job = planted(iterations=2, bn_recal=False)
    TANA(priority=priority)(job)
    assert {r: tuple(k) for r, k in job.kept.items()} == {
        name: tuple(c for c in range(16) if c not in dead) for name, dead in USELESS.items()
    }
    assert parts.agreement(job) == 1.0


class Wide(nn.Module):
    """Two layers whose channels carry much the same, but a channel of `dear` costs more MACs than one of `cheap`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.dear, self.dear_out = nn.Conv2d(8, 16, 5, padding=2), nn.Conv2d(16, 8, 5, padding=2)
        self.cheap, self.cheap_out = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.dear_out(self.dear(x).relu())
        x = x + self.cheap_out(self.cheap(x).relu())
        return x.mean((2, 3))


def test_the_cost_decides_among_equals(planted: Callable[..., Job]) -> None:
    job = planted()
    job = replace(job, network=replace(job.network, module=Wide().eval()))
    found = graph.find(job.network.module, job.network.example(), verify=False)
    equal = {one.root: torch.full((one.width,), 1.0) / one.width for one in found}
    by_cost = TANA()._priority(job, found)
    assert by_cost is not None
    when = leaving(equal, 1.0, 1.0, by_cost)
    assert float(when["dear"].max()) < float(when["cheap"].min())
    assert TANA(priority="none")._priority(job, found) is None


def test_what_it_learns(planted: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def spy(job: Job, objective: Any, passes: float, stage: str) -> None:
        asked.append((objective, job.source, stage))

    monkeypatch.setattr(work, "learn", spy)
    job = planted(iterations=2, recover=4.0)
    TANA()(job)
    assert [(type(o).__name__, o.needs.source, stage) for o, _, stage in asked] == [
        ("Imitate", False, "recover-1"),
        ("Imitate", False, "recover-2"),
    ]
    asked.clear()
    few = pixels(12, 60, 4)
    job = planted(iterations=1)
    job.labelled = few
    TANA()(job)
    assert [(type(o).__name__, s is few, o.knobs.smoothing) for o, s, _ in asked] == [("Source", True, 0.0)]
    asked.clear()
    job = planted(iterations=1)
    job.labelled = few
    TANA(distill=0.5)(job)
    assert [(o.needs.source, o.needs.teacher) for o, _, _ in asked] == [(True, True)]
    job = planted(objective="mcc")
    job.labelled = few
    with pytest.raises(UsageError, match="--objective mcc: with --labelled-target, tana learns from those"):
        TANA()(job)


def test_labels_are_learned_from(planted: Callable[..., Job]) -> None:
    """Cross entropy on the few labelled images falls; the source is left alone."""
    few = pixels(12, 0, 4)
    assert few.labels is not None
    few.images = (60 * few.labels[:, None, None, None]).expand(12, 8, 8, 3).to(torch.uint8)
    images = (few.take(torch.arange(12)).float().permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    losses = []
    for recover in (0.0, 8.0):
        job = planted(recover=recover, iterations=1, lr=1e-2)
        job.labelled = few
        job.target = few.subset([*range(12)] * 4)
        job.target.labels = None
        TANA()(job)
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(job.network.module.eval()(images), few.labels)))
    assert losses[1] < losses[0]
    assert job.trace[0]["images"] == 32 * 12  # 8 passes of 48 images, 12 in a step
    assert job.source is not None
    assert len(job.source) == 40


def test_helpful_errors(options: PruneOptions, tmp_path: Path, make_images: Make) -> None:
    few = make_images(tmp_path / "few", count=2)
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (
            UsageError,
            "--method auto learns from no target label; leave it out, or take --method tana",
            {"method": "auto"},
        ),
        (UsageError, "level=0: expected a share above 0, at most 1", {"set": ("level=0",)}),
        (UsageError, "tana has no knob 'levels': did you mean 'level'", {"set": ("levels=2",)}),
        (UsageError, "--set priority=costs: did you mean 'cost'", {"set": ("priority=costs",)}),
        (UsageError, "after --plan the recovery is label-free", {"plan": few / "plan.json", "macs": None}),
        (DataError, "all 4 images are among --labelled-target", {"evaluate": few}),
    ]
    for error, message, change in wrong:
        words = {"method": "tana", "labelled_target": few, **change}
        with pytest.raises(error, match=message):
            prune(replace(options, **words))
        assert not (tmp_path / "slim").exists(), message


def test_dry_run_shows_its_own_plan(options: PruneOptions) -> None:
    one = replace(options, method="tana", dry_run=True, iterations=None)
    found = prune(one)
    assert found.run is None
    assert found.macs <= 0.5 * found.dense_macs
    assert found.widths != prune(replace(one, method="distill")).widths
    whole = prune(replace(one, dry_run=False, iterations=1, recover=0.0))
    assert found.widths == whole.widths


def test_a_killed_run_goes_on(options: PruneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = make_few(options, tmp_path)
    words = replace(options, method="tana", iterations=2, labelled_target=few, recover=4.0)
    whole = prune(replace(words, output=tmp_path / "whole"))
    cut, fit = parts.cut, train.fit
    passed: list[str] = []

    class Killed(BaseException):
        pass

    def once(name: str) -> None:
        if name not in passed:
            passed.append(name)
            raise Killed

    def killed_cut(job: Any, ceilings: Any, number: int, criterion: Any) -> Any:
        found = cut(job, ceilings, number, criterion)
        once(f"cut {number}")
        return found

    def killed_fit(*args: Any, **named: Any) -> train.Fit:
        found = fit(*args, **named)
        once(named["stage"])
        return found

    monkeypatch.setattr(parts, "cut", killed_cut)
    monkeypatch.setattr(train, "fit", killed_fit)
    for _ in range(4):
        with pytest.raises(Killed):
            prune(replace(words, resume=True))
    found = prune(replace(words, resume=True))
    assert passed == ["cut 1", "recover-1", "cut 2", "recover-2"]
    assert (found.widths, found.cuts, found.target_labels) == (whole.widths, whole.cuts, 2)
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "slim"))
    assert all(torch.equal(left[name], right[name]) for name in left | right)


def make_few(options: PruneOptions, tmp_path: Path) -> Path:
    """One image a class of the target, as a user would copy them."""
    assert options.target is not None
    for name in ("cat", "dog"):
        (tmp_path / "few" / name).mkdir(parents=True)
        (tmp_path / "few" / name / "0.png").write_bytes((options.target / name / "0.png").read_bytes())
    return tmp_path / "few"


def test_the_command(options: PruneOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As typed; what was learned from is not in the accuracy, and is said."""
    words = ["prune", options.model, "--target", str(options.target), "--method", "tana", "--macs", "0.5"]
    words += ["--labelled-target", str(make_few(options, tmp_path)), "--evaluate", str(options.target)]
    words += [
        "--recover",
        "2",
        "--batch",
        "4",
        "--set",
        "cuts=2",
        "--device",
        "cpu",
        "-o",
        str(options.output),
    ]
    assert main(words) == 0
    said_of_both = " ".join(capsys.readouterr().err.split())
    assert "2 of the 8 images of --evaluate are among --labelled-target" in said_of_both
    assert options.output is not None
    said = records.results(options.output)
    assert said["target_labels"] == 2
    assert said["accuracy"] * 6 == pytest.approx(round(said["accuracy"] * 6))
    assert [cut["cut"] for cut in said["cuts"]] == [1, 2]


def test_magnitudes_can_be_summed_in_place_of_squares() -> None:
    net, images = Planted().eval(), torch.randn(3, 3, 8, 8)
    couplings = graph.find(net, images, verify=False)
    one, two = (Activation([images], False, False, power)(net, couplings)["first"] for power in (1, 2))
    with torch.no_grad():
        a = net.first(net.norm(net.stem(images)).relu()).relu()
    torch.testing.assert_close(one, a.abs().sum((0, 2, 3)).double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two, a.square().sum((0, 2, 3)).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("priority", ["cost", "budget"])
def test_attention_is_cut_too(priority: Any, planted: Callable[..., Job]) -> None:
    """Heads and hidden units of a transformer; what cannot be watched is read from its weights."""
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(8, 4, 2, 4, 32, 64, num_classes=4).eval()
    job = planted(channels="0.6", multiple=4)
    job = replace(job, network=replace(job.network, module=net, classifier="heads.head"), dense=net)
    job = replace(job, network=replace(job.network, module=copy.deepcopy(net)))
    TANA(priority=priority, cuts=2)(job)
    kept, whole = job.channels
    assert kept <= 0.6 * whole
    assert job.network.module(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
