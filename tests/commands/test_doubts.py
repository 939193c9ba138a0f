"""What a user should know before believing an estimate, or the classes that are called present."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.commands import estimating
from edgeprune.data.pixels import Pixels
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.options import AdaptOptions


def network(*, command: str = "adapt", **options: Any) -> Network:
    history = [{"command": command, "options": options}] if options else []
    return Network(nn.Identity(), "x", Preprocess((8, 8)), ("a", "b", "c"), "head", history=history)


def answers(*counts: int) -> torch.Tensor:
    return 5 * torch.eye(3)[torch.repeat_interleave(torch.arange(3), torch.tensor(counts))]


HELD = Pixels(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.zeros(4).long(), list("wxyz"))


def test_nothing_to_say(tmp_path: Path) -> None:
    options = AdaptOptions(source=tmp_path, hold_out=0.2)
    assert estimating.doubts(options, network(), answers(20, 20, 0), HELD) == ()
    assert estimating.doubts(options, network(command="adapt"), answers(20, 20, 0), None) == ()


@pytest.mark.parametrize(
    ("was", "doubted"),
    [
        ({"objective": "mcc", "hold_out": 0.0, "seed": 0}, True),
        ({"objective": "auto", "hold_out": 0.2, "seed": 1}, True),
        ({"objective": "shot", "hold_out": 0.0, "seed": 0, "source_steps": 9}, True),
        ({"command": "prune", "method": "tcp", "objective": "none", "seed": 0}, True),
        ({"objective": "mcc", "hold_out": 0.2, "seed": 0}, False),
        ({"objective": "shot", "hold_out": 0.0, "seed": 0}, False),
        ({"command": "prune", "method": "auto", "objective": "none", "seed": 0}, False),
    ],
)
def test_images_that_an_earlier_run_learned_from(tmp_path: Path, was: dict[str, Any], doubted: bool) -> None:
    options = AdaptOptions(source=tmp_path, hold_out=0.2, seed=0)
    said = estimating.doubts(options, network(source=str(tmp_path), **was), answers(20, 20, 0), HELD)
    assert bool(said) == doubted
    assert all("are not new to it, and the estimate may be far too high" in one for one in said)
    assert not estimating.doubts(options, network(source="elsewhere", **was), answers(20, 20, 0), HELD)


def test_what_a_validator_held_out_is_new_as_well(tmp_path: Path) -> None:
    options = AdaptOptions(source=tmp_path, select="dev", seed=0)
    was: dict[str, Any] = {
        "objective": "mcc",
        "select": "dev",
        "hold_out": 0.0,
        "seed": 0,
        "source": str(tmp_path),
    }
    assert estimating.doubts(options, network(**was), answers(20, 20, 0), HELD) == ()
    assert estimating.doubts(options, network(**{**was, "select": "snd"}), answers(20, 20, 0), HELD)


def test_answers_of_one_class() -> None:
    (said,) = estimating.doubts(AdaptOptions(), network(), answers(1, 39, 0), None)
    assert said.startswith(
        "39 of 40 target images are called 'b': unless that is so, the model has collapsed"
    )


def test_few_images_say_nothing_of_absent_classes() -> None:
    few = AdaptOptions(drop_absent_classes=True)
    (said,) = estimating.doubts(few, network(), answers(5, 5, 0), None)
    assert said.startswith("10 target images are too few to say which classes are absent")
    assert estimating.doubts(few, network(), answers(10, 10, 0), None) == ()


def test_one_class_that_was_spread_over_others_is_said() -> None:
    one, some = answers(39, 1, 0), answers(18, 12, 10)
    (said,) = estimating.scattered(network(), one, some)
    assert said.startswith(
        "before adapting 98% of the target images were called 'a', now 45%: if the target does hold"
    )
    assert estimating.scattered(network(), some, one) == ()  # what collapses is told of elsewhere
    assert estimating.scattered(network(), one, answers(30, 10, 0)) == ()
    assert estimating.scattered(network(), answers(10, 0, 0), answers(1, 9, 0)) == ()  # too few to say
