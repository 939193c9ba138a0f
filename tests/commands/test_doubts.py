"""What a user should know before believing an estimate, or the classes that are called present."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.commands import adaptable, estimating
from edgeprune.data.pixels import Pixels
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.options import AdaptOptions
from edgeprune.waist import Needs


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
    (other,) = estimating.scattered(network(), one, some, can=False)
    assert other.endswith("an objective that learns from the source with --set partial=true keeps them")


def test_statistics_of_other_weights_are_said(tmp_path: Path) -> None:
    def of(weight: float) -> Network:
        module = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 64, 3))
        nn.init.constant_(module[2].weight, weight)  # type: ignore[arg-type]
        return replace(network(), module=module.eval(), classifier="2")

    labelled = Pixels(torch.zeros(24, 8, 8, 3, dtype=torch.uint8), torch.arange(24) % 3, ["x"] * 24)
    file = tmp_path / "stats.json"
    mine = of(0.25)
    estimating.export(file, mine, labelled)
    options = AdaptOptions(stats=file)
    assert estimating.of_another(options, mine) == []
    assert estimating.of_another(AdaptOptions(), mine) == []
    (said,) = estimating.of_another(options, of(0.5))
    assert "measured with other weights than this model has" in said
    mine.module.get_submodule("0").get_buffer("running_mean").add_(1)
    assert estimating.of_another(options, mine)
    old = json.loads(file.read_text())  # a file of before says nothing of its model
    del old["model"]
    file.write_text(json.dumps(old))
    assert estimating.of_another(options, mine) == []


def test_a_network_that_nothing_taught_is_said(tmp_path: Path) -> None:
    words: dict[str, Any] = {"source_steps": 0, "held": False}
    said = adaptable.unheard(AdaptOptions(weights="none"), Needs(), **words)
    assert [
        one for one in said if one.startswith("--weights none: unless what makes the network loads weights")
    ]
    given = AdaptOptions(weights="none", source=tmp_path)
    for options, needs, told in (
        (AdaptOptions(), Needs(), False),
        (given, Needs(source=True), False),
        (given, Needs(), True),  # nothing looks at the source
    ):
        said = adaptable.unheard(options, needs, **words)
        assert any(one.startswith("--weights none") for one in said) == told
