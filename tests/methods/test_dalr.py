"""DALR: ranks within the budget, a planted low-rank layer found, and the whole command with its checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from edgeprune import checkpoint, skeleton, train
from edgeprune.bench import layers
from edgeprune.cli.app import main
from edgeprune.commands.export import export
from edgeprune.commands.prune import prune
from edgeprune.device_options import ExportOptions
from edgeprune.errors import BudgetNotMet, PlanError, UsageError
from edgeprune.images import Preprocess
from edgeprune.methods import parts
from edgeprune.methods.dalr import DALR
from edgeprune.methods.job import Job
from edgeprune.methods.ranks import Choice, allocate
from edgeprune.model import Network
from edgeprune.options import PruneOptions
from edgeprune.plan import LowRank, PruningPlan
from edgeprune.prune import lowrank, macs
from edgeprune.prune.budget import Budget
from tests.methods.conftest import pixels
from tests.prune.test_pair_times import macs_of


@pytest.fixture(autouse=True)
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which time is MACs, so that no test depends on how fast this one is."""
    monkeypatch.setattr(layers, "layer_ms", lambda path, threads, scratch: macs_of(path))


def test_the_cheapest_loss_goes_first() -> None:
    easy = [Choice("easy", 8, 50, 0.0), Choice("easy", 4, 80, 0.01)]
    hard = [Choice("hard", 8, 50, 0.4), Choice("hard", 4, 80, 0.6)]
    assert allocate([easy, hard], 60) == {"easy": easy[1]}
    assert {k: v.rank for k, v in allocate([easy, hard], 110).items()} == {"easy": 4, "hard": 8}
    assert {k: v.rank for k, v in allocate([easy, hard], 100).items()} == {"easy": 8, "hard": 8}  # to spare
    with pytest.raises(
        BudgetNotMet, match=r"low rank saves 160 of the 200 .*: give a larger budget, or cut channels"
    ):
        allocate([easy, hard], 200)
    with pytest.raises(
        BudgetNotMet, match=r"of the 200 MACs that the budget asks for: give --macs 340 or more, or"
    ):
        allocate([easy, hard], 200, "macs", 300.0)


@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_what_is_to_spare_is_given_back(seed: int, share: float) -> None:
    """The ranks save what is needed, and no single one of them could be higher, or its layer whole."""
    random = np.random.default_rng(seed)
    ladders = []
    for layer in range(random.integers(1, 6)):
        count = int(random.integers(1, 6))
        saved = np.sort(random.uniform(1, 100, count))
        lost = np.sort(random.uniform(0, 1, count))
        rungs = zip(range(count, 0, -1), saved, lost, strict=True)
        ladders.append([Choice(str(layer), 8 * k, float(s), float(e)) for k, s, e in rungs])
    needed = share * sum(steps[-1].saved for steps in ladders)
    found = allocate(ladders, needed)
    saves = sum(one.saved for one in found.values())
    assert saves >= needed
    for steps in ladders:
        if (now := found.get(steps[0].layer)) is not None:
            above = [0.0, *(one.saved for one in steps if one.saved < now.saved)]
            assert saves - now.saved + max(above) < needed


def test_a_wrong_form_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="centred"):
        DALR(form="centered")  # type: ignore[arg-type]


def test_the_whole_command_and_a_fresh_process(options: PruneOptions) -> None:
    prune(
        replace(options, method="dalr", macs="0.7", iterations=1, schedule="linear", multiple=4, recover=1.0)
    )
    assert options.output is not None
    slim = checkpoint.read(options.output)
    dense = checkpoint.read(Path(options.model))
    assert skeleton.pairs(slim.module)
    before, after = (macs.measure(n.module, n.example())[0] for n in (dense, slim))
    assert after <= 0.7 * before
    words = (
        "import sys, torch; from edgeprune import checkpoint; from pathlib import Path\n"
        "n = checkpoint.read(Path(sys.argv[1])); torch.save(n.module(n.example()), sys.argv[2])"
    )
    there = options.output / "there.pt"
    subprocess.run([sys.executable, "-c", words, str(options.output), str(there)], check=True, timeout=60)
    assert torch.equal(torch.load(there, weights_only=True), slim.module(slim.example()))


class Thin(nn.Module):
    """Three convolutions, the second of rank 3."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two, self.three = (nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16))
        self.head = nn.Linear(16, 4)
        with torch.no_grad():
            low = torch.randn(16, 3) @ torch.randn(3, 144) / 20
            self.two.weight.copy_(low.reshape(16, 16, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.three(self.two(self.one(x).relu()).relu()).relu()
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


def thin(saved: int) -> Job:
    """A job that asks for so many MACs less, without training."""
    pre = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)
    network = Network(Thin().eval(), "thin", pre, tuple("abcd"), "head")
    how = Budget(macs=float(macs.measure(network.module, network.example())[0] - saved))
    return Job.of(network, (pixels(48, 40, None), None), how, PruneOptions(multiple=1, recover=0.0), None)


def test_a_planted_layer_of_low_rank_is_found_and_loses_nothing() -> None:
    job = thin(110_000)  # rank 3 saves 64 * (16 * 144 - 3 * 160) = 116,736; rank 4 is not enough
    DALR(ridge=1e-9)(job)
    assert {name: rank for name, (rank, _) in skeleton.pairs(job.network.module).items()} == {"two": 3}
    assert job.plans[0].why["output_energy_lost"]["two"] < 1e-6
    x = (pixels(16, 40, None).images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(job.network.module(x), job.dense(x), rtol=1e-3, atol=1e-4)
    assert job.trace[0]["images_looked_at"] >= 3 * 48  # for the moments, and for the agreement twice
    assert job.trace[0]["agreement_after_cut"] == 1.0


def test_groups_of_one_layer_give_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    together, alone = thin(200_000), thin(200_000)
    DALR()(together)
    watched: list[list[str]] = []
    watching = lowrank.watching

    def spy(module: nn.Module, names: list[str], positions: int) -> Any:
        watched.append(names)
        return watching(module, names, positions)

    monkeypatch.setattr(lowrank, "MOST_BYTES", 8 * 144 * 144)
    monkeypatch.setattr(lowrank, "watching", spy)
    DALR()(alone)
    assert watched[:3] == [["one"], ["two"], ["three"]]
    assert all(len(names) == 1 for names in watched)
    assert len(together.plans[0].low_rank) >= 2
    assert alone.plans[0].to_json() == together.plans[0].to_json()
    left, right = (one.network.module.state_dict() for one in (alone, together))
    assert all(torch.equal(left[key], right[key]) for key in left | right)


def test_the_plan_is_much_the_same_from_the_samples_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound below one layer's Gram matrix: 24 samples are kept of it, and it still is the one of low rank."""
    job = thin(110_000)
    monkeypatch.setattr(lowrank, "MOST_BYTES", 8 * 144 * 24)
    DALR(ridge=1e-9)(job)
    assert {name: rank for name, (rank, _) in skeleton.pairs(job.network.module).items()} == {"two": 3}
    assert job.trace[0]["agreement_after_cut"] == 1.0


def test_pairs_are_exported_as_they_answer(options: PruneOptions) -> None:
    run = prune(replace(options, method="dalr", macs="0.7", iterations=None, multiple=4, recover=0.0)).run
    made = export(ExportOptions(model=str(run), images=options.target))
    pairs = skeleton.pairs(checkpoint.read(Path(str(run))).module)
    assert pairs
    assert made.parity is not None
    assert made.parity["flips"] == 0
    assert made.parity["relative"] < 1e-4
    assert made.file is not None
    names = {one.name for one in onnx.load(made.file).graph.initializer}
    assert {f"{name}.{half}.weight" for name in pairs for half in (0, 1)} <= names


def test_layers_that_are_kept_stay_as_they_are(options: PruneOptions) -> None:
    words = replace(options, method="dalr", macs="0.8", iterations=1, multiple=4, recover=0.0, dry_run=True)
    first = next(iter(prune(words).low_rank))
    found = prune(replace(words, keep=(first,)))
    assert found.low_rank
    assert first not in found.low_rank


def plan_of(run: Path | None) -> dict[str, Any]:
    assert run is not None
    return dict(json.loads((run / "plan.json").read_text()))


def low(options: PruneOptions, **change: Any) -> PruneOptions:
    words = {
        "method": "dalr",
        "macs": "0.7",
        "iterations": 1,
        "schedule": "linear",
        "multiple": 4,
        "recover": 0.0,
    }
    return replace(options, **{**words, **change})


def test_dry_run_shows_the_ranks(options: PruneOptions, capsys: pytest.CaptureFixture[str]) -> None:
    found = prune(low(options, dry_run=True))
    made = prune(low(options))
    assert found.low_rank
    assert found.low_rank == made.low_rank
    assert (found.macs, found.params, found.widths) == (made.macs, made.params, {})
    assert found.macs <= 0.7 * found.dense_macs
    plan = {one["layer"]: one["rank"] for one in plan_of(options.output)["low_rank"]}
    assert {name: rank for name, (_, _, rank) in found.low_rank.items()} == plan
    row = found.to_json()["low_rank"][0]
    layer = checkpoint.read(Path(options.model)).module.get_submodule(row["layer"])
    assert (row["outputs"], row["inputs"]) == tuple(layer.weight.flatten(1).shape)  # type: ignore[operator]
    words = ["prune", options.model, "--target", str(options.target), "--method", "dalr", "--macs", "0.7"]
    assert main([*words, "--multiple", "4", "--dry-run", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "low rank" in shown.lower()
    assert row["layer"] in shown


def test_a_plan_with_ranks_fits_other_weights(options: PruneOptions, tmp_path: Path) -> None:
    """The same ranks, with the values that these weights and their activations have: what dalr itself would make."""
    made = prune(low(options))
    other = checkpoint.read(Path(options.model))
    torch.manual_seed(9)
    for tensor in other.module.parameters():
        tensor.data += 0.02 * torch.randn_like(tensor)
    checkpoint.write(tmp_path / "other.safetensors", other)
    plan = tmp_path / "slim" / "plan.json"
    again = low(options, model=str(tmp_path / "other.safetensors"), method="auto", macs=None, plan=plan)
    dry = prune(replace(again, dry_run=True))
    found = prune(replace(again, output=tmp_path / "again"))
    assert found.low_rank == dry.low_rank == made.low_rank
    assert (found.macs, found.params) == (made.macs, made.params)
    slim = checkpoint.read(tmp_path / "again")
    # Not the values of the first network: nearer to the answers of the second.
    x = torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        to, near, far = (n.module.eval()(x) for n in (other, slim, checkpoint.read(tmp_path / "slim")))
    assert (near - to).norm() < (far - to).norm()
    same = prune(low(options, macs=None, plan=plan, output=tmp_path / "same"))
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in ("slim", "same"))
    assert same.agreement == made.agreement
    assert all(torch.equal(left[name], right[name]) for name in left | right)


def test_a_plan_that_does_not_fit_says_why(options: PruneOptions, tmp_path: Path) -> None:
    name = next(iter(prune(low(options)).low_rank))
    classifier = checkpoint.read(Path(options.model)).classifier
    for ranks, message in (
        (
            [(name + "x", 4)],
            f"{name}x: the plan makes it low-rank, the network has no such layer; did you mean",
        ),
        ([(name, 400)], rf"{name}: rank 400 in the plan, \d+ x \d+ in the network"),
        ([(classifier, 1)], f"{classifier}: the plan makes it low-rank, but it must stay: it is Linear"),
    ):
        plan = PruningPlan((), tuple(LowRank(*one) for one in ranks))
        (tmp_path / "wrong.json").write_text(plan.dumps())
        with pytest.raises(PlanError, match=message):
            prune(low(options, macs=None, plan=tmp_path / "wrong.json", dry_run=True))


def test_channels_then_low_rank(options: PruneOptions, tmp_path: Path) -> None:
    words = low(options, method="auto", then="dalr", macs="0.4", iterations=2, recover=4.0)
    dry = prune(replace(words, dry_run=True, iterations=1))
    assert dry.widths
    assert dry.low_rank
    found = prune(words)
    assert found.macs <= 0.4 * found.dense_macs
    assert found.widths
    assert found.low_rank
    assert found.method == "auto+dalr"
    assert [cut["cut"] for cut in found.cuts] == [1, 2, 3]
    assert found.cuts[1]["macs"] <= 0.4**0.5 * found.dense_macs < found.cuts[1]["macs"] * 1.3
    seen = sum(cut.get("images", 0) for cut in found.cuts)
    assert abs(seen - 4 * 8) <= 3 * 4  # --recover 4 in all, to a step for each of three trainings
    assert checkpoint.read(tmp_path / "slim").module(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    again = low(
        options, method="auto", macs=None, plan=tmp_path / "slim" / "plan.json", output=tmp_path / "again"
    )
    same = prune(again)
    assert (same.widths, same.low_rank, same.macs) == (found.widths, found.low_rank, found.macs)


def test_what_goes_wrong_with_then(options: PruneOptions, tmp_path: Path) -> None:
    for change, message in (
        ({"then": "dalrr"}, "--then dalrr: did you mean 'dalr'"),
        ({"method": "dalr"}, "--then dalr: --method is the same"),
        (
            {"macs": None, "channels": "0.5"},
            "--then dalr takes --macs, --params or --latency; received a budget of channels 0.5",
        ),
        ({"then_share": 2.0}, "--then-share 2.0: expected 0 to 1"),
        ({"set": ("dalr.ridg=1",)}, "--set ridg=1: dalr has no knob 'ridg': did you mean 'ridge'"),
        ({"set": ("ridge=1",)}, "auto has no knob 'ridge'"),
    ):
        with pytest.raises(UsageError, match=message):
            prune(low(options, **{"method": "auto", "then": "dalr", **change}))
        assert not (tmp_path / "slim").exists()


class Killed(BaseException):
    pass


def test_a_killed_composition_goes_on(
    options: PruneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = low(options, method="auto", then="dalr", macs="0.4", iterations=1, recover=4.0)
    whole = prune(replace(words, output=tmp_path / "whole"))
    record, fit = parts.record, train.fit
    passed: list[str] = []

    def once(name: str) -> None:
        if name not in passed:
            passed.append(name)
            raise Killed

    def killed_record(job: Any, plan: Any, number: int, *twin: Any) -> None:
        record(job, plan, number, *twin)
        once(f"cut {number}")

    def killed_fit(*args: Any, **named: Any) -> train.Fit:
        found = fit(*args, **named)
        once(named["stage"])
        return found

    monkeypatch.setattr(parts, "record", killed_record)
    monkeypatch.setattr(train, "fit", killed_fit)
    for _ in range(4):
        with pytest.raises(Killed):
            prune(replace(words, resume=True))
    found = prune(replace(words, resume=True))
    assert passed == ["cut 1", "recover-1", "cut 2", "recover-dalr"]
    lines = [json.loads(line) for line in (tmp_path / "slim" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "cut"] == [1, 2]
    assert found.cuts == whole.cuts
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "slim"))
    assert all(torch.equal(left[name], right[name]) for name in left | right)
