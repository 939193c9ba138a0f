"""DALR: ranks within the budget, a planted low-rank layer found, and the whole command with its checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgeprune import checkpoint, skeleton, train
from edgeprune.cli.app import main
from edgeprune.commands.prune import prune
from edgeprune.errors import BudgetNotMet, PlanError, UsageError
from edgeprune.methods import parts
from edgeprune.methods.dalr import DALR, Choice, allocate
from edgeprune.options import PruneOptions
from edgeprune.plan import LowRank, PruningPlan
from edgeprune.prune import macs


def test_the_cheapest_loss_goes_first() -> None:
    easy = [Choice("easy", 8, 50, 0.0), Choice("easy", 4, 80, 0.01)]
    hard = [Choice("hard", 8, 50, 0.4), Choice("hard", 4, 80, 0.6)]
    assert allocate([easy, hard], 60) == {"easy": easy[1]}
    assert {k: v.rank for k, v in allocate([easy, hard], 100).items()} == {"easy": 4, "hard": 8}
    with pytest.raises(BudgetNotMet, match="low rank saves 160 of the 200"):
        allocate([easy, hard], 200)


def test_a_wrong_form_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="centred"):
        DALR(form="centered")


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
    assert [cut["cut"] for cut in found.cuts] == [0, 1, 2]
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
            "--then dalr takes --macs or --params; received a budget of channels 0.5",
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

    def killed_record(job: Any, plan: Any, number: int) -> None:
        record(job, plan, number)
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
    assert passed == ["cut 0", "recover-0", "cut 1", "recover-dalr"]
    lines = [json.loads(line) for line in (tmp_path / "slim" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "cut"] == [0, 1]
    assert found.cuts == whole.cuts
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "slim"))
    assert all(torch.equal(left[name], right[name]) for name in left | right)
