"""The recommended method: it cuts what is useless, imitates what stays, counts its images, and resumes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn

from edgeprune import inference, records
from edgeprune.commands.prune import prune
from edgeprune.methods import hints, parts
from edgeprune.methods.auto import AutoPruning
from edgeprune.methods.job import Job
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions, PruneOptions
from edgeprune.prune import graph
from tests.methods.conftest import USELESS


def test_exactly_the_useless_channels_go(planted: Callable[..., Job]) -> None:
    job = planted()
    AutoPruning(cuts=2)(job)
    assert {root: tuple(sorted(set(range(16)) - set(kept))) for root, kept in job.kept.items()} == USELESS
    assert job.channels == (16, 32)


def test_hints_are_met_where_nothing_of_use_was_cut(planted: Callable[..., Job]) -> None:
    job = planted(bn_recal=False)
    AutoPruning(cuts=1)(job)
    objective = parts.chosen_objective(job, 1.0)
    shared = hints.shared_channels(job.dense, "head", job.dense_couplings, job.kept)
    assert (shared["first_out"], shared["second_out"]) == (job.kept["first"], job.kept["second"])
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        ours, theirs = (
            _enter(net, objective.needs.layers, images) for net in (job.network.module, job.dense)
        )
    for name, channels in shared.items():
        torch.testing.assert_close(ours[name], theirs[name].index_select(1, torch.tensor(channels)))


def _enter(module: nn.Module, layers: tuple[str, ...], images: Tensor) -> dict[str, Tensor]:
    with inference.Taps(module, "head", layers) as taps:
        module(images)
    return dict(taps.layers)


def test_without_layers_only_answers_are_compared(planted: Callable[..., Job]) -> None:
    assert parts.chosen_objective(planted(), 0.0).needs.layers == ()


def test_hints_are_few_and_name_whole_inputs() -> None:
    net = open_network("timm:resnet18", ModelOptions(weights="none"))[0]
    found = hints.shared_channels(
        net.module, net.classifier, graph.find(net.module, net.example(), verify=False), {}
    )
    assert len(found) == hints.MOST
    for name, channels in found.items():
        assert channels == list(range(net.module.get_parameter(f"{name}.weight").shape[1]))


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
