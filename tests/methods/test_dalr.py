"""DALR: ranks within the budget, a planted low-rank layer found, and the whole command with its checkpoint."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeprune import checkpoint, skeleton
from edgeprune.commands.prune import prune
from edgeprune.errors import BudgetNotMet, UsageError
from edgeprune.methods.dalr import DALR, Choice, allocate
from edgeprune.options import PruneOptions
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
