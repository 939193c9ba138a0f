"""The recommended method: it cuts what is useless, imitates what stays, counts its images, and resumes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load
from torch import Tensor, nn

from edgeprune import inference, records
from edgeprune.commands.prune import prune
from edgeprune.data.pixels import Pixels
from edgeprune.images import Preprocess
from edgeprune.methods import hints, parts
from edgeprune.methods.auto import AutoPruning
from edgeprune.methods.distill import DistillPruning
from edgeprune.methods.job import Job
from edgeprune.model import Network
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions, PruneOptions
from edgeprune.prune import graph
from edgeprune.prune.budget import Budget
from tests.methods.conftest import USELESS


def test_exactly_the_useless_channels_go(planted: Callable[..., Job]) -> None:
    job = planted(iterations=2)
    AutoPruning()(job)
    assert {root: tuple(sorted(set(range(16)) - set(kept))) for root, kept in job.kept.items()} == USELESS
    assert job.channels == (16, 32)


@pytest.mark.parametrize(("asked", "cuts"), [(None, 1), (3, 3)])
def test_one_cut_unless_more_are_asked_for(asked: int | None, cuts: int, planted: Callable[..., Job]) -> None:
    job = planted(recover=9.0, iterations=asked)
    AutoPruning()(job)
    assert len(job.trace) == cuts


def test_without_layers_it_is_distill(planted: Callable[..., Job]) -> None:
    made = []
    for method in (AutoPruning(layers=0.0), DistillPruning(), AutoPruning()):
        job = planted(recover=2.0, seed=3)
        method(job)
        made.append(torch.cat([p.flatten() for p in job.network.module.parameters()]).detach())
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2]), "what is inside is learned, too"


def test_hints_are_met_where_nothing_of_use_was_cut(planted: Callable[..., Job]) -> None:
    job = planted(bn_recal=False)
    AutoPruning()(job)
    objective = parts.chosen_objective(job, 1.0)
    example = torch.rand(1, 3, 8, 8)
    shared = hints.shared_channels(job.dense, example, "head", job.dense_couplings, job.kept)
    found = shared["first_out"], shared["second_out"]
    assert [list(one.channels) for one in found] == [job.kept["first"], job.kept["second"]]
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        ours, theirs = (
            _enter(net, objective.needs.layers, images) for net in (job.network.module, job.dense)
        )
    for name, one in shared.items():
        torch.testing.assert_close(
            ours[name], theirs[name].index_select(one.axis, torch.tensor(one.channels))
        )


def _enter(module: nn.Module, layers: tuple[str, ...], images: Tensor) -> dict[str, Tensor]:
    with inference.Taps(module, "head", layers) as taps:
        module(images)
    return dict(taps.layers)


def test_without_layers_only_answers_are_compared(planted: Callable[..., Job]) -> None:
    assert parts.chosen_objective(planted(), 0.0).needs.layers == ()


def test_hints_are_few_and_name_whole_inputs() -> None:
    net = open_network("timm:resnet18", ModelOptions(weights="none"))[0]
    found = hints.shared_channels(
        net.module, net.example(), net.classifier, graph.find(net.module, net.example(), verify=False), {}
    )
    assert len(found) == hints.MOST
    for name, one in found.items():
        assert list(one.channels) == list(range(net.module.get_parameter(f"{name}.weight").shape[1]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("convnext_atto", num_classes=4, depths=(1, 1, 1, 1), dims=(16, 16, 32, 32)),
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=4),
        lambda: torchvision.models.swin_transformer.SwinTransformer(
            [4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=4
        ),
    ],
    ids=["channels last", "torch's attention", "windows"],
)
def test_what_maps_have_on_their_last_axis_is_imitated(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().eval()
    example = torch.randn(2, 3, 32, 32)
    name = next(n for n, part in reversed(list(module.named_modules())) if isinstance(part, nn.Linear))
    network = Network(module, "here", Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3), tuple("abcd"), name)
    options = PruneOptions(macs="0.6", recover=2.0, batch=8, score="magnitude", crop=1.0)
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8)
    job = Job.of(
        network,
        (Pixels(images, None, [str(i) for i in range(16)]), None),
        Budget.parse(macs="0.6", params=None, channels=None),
        options,
        None,
    )
    AutoPruning()(job)
    assert parts.chosen_objective(job, 1.0).needs.layers, "something inside is compared"
    assert network.module(example).isfinite().all()
    assert job.steps == [4], "two passes of sixteen images, eight a step"


def test_the_command_counts_its_images_and_is_repeatable(options: PruneOptions, tmp_path: Path) -> None:
    how = replace(options, method="auto", source=None)
    found = prune(replace(how, output=tmp_path / "whole", evaluate=options.source))
    watched = [m["accuracy"] for m in records.metrics(tmp_path / "whole") if "accuracy" in m]
    assert len(watched) >= 3
    assert all(0 <= accuracy <= 1 for accuracy in watched)
    seen = sum(cut["images"] for cut in found.cuts)
    assert len(found.cuts) == 3
    assert abs(seen - 6 * 8) <= 3 * 8
    again = prune(replace(how, output=tmp_path / "again"))  # nobody looks this time
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert found.macs == again.macs
    for name, tensor in load(one).items():
        assert torch.equal(tensor, load(other)[name]), name
