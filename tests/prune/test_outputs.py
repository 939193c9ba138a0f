"""Networks whose outputs are dicts and lists: segmentation and detection, planned, cut, rebuilt."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torchvision.models import detection, segmentation

from edgeprune import skeleton
from edgeprune.commands.inspect import inspect
from edgeprune.device_options import InspectOptions
from edgeprune.prune import budget, graph, macs, surgery
from edgeprune.prune.preflight import liven
from edgeprune.prune.scores.magnitude import Magnitude
from edgeprune.prune.scores.taylor import Taylor

BARE: Any = {"weights": None, "weights_backbone": None}
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def halved(module: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """The network cut to half of its MACs, and its couplings."""
    found = graph.find(module, example)
    dense = macs.measure(module, example)[0]
    plan = budget.plan(module, example, found, Magnitude()(module, found), {"macs": 0.5 * dense})
    slim = copy.deepcopy(module)
    surgery.apply(slim, plan, found)
    assert 0.48 * dense <= macs.measure(slim, example)[0] <= 0.5 * dense
    made = copy.deepcopy(module)
    skeleton.impose(made, skeleton.diff(module, slim), {k: v.shape for k, v in slim.state_dict().items()})
    made.load_state_dict(slim.state_dict(), strict=True)
    with torch.no_grad():
        answers = [
            tree_leaves(n(*(example if isinstance(example, tuple) else (example,)))) for n in (slim, made)
        ]
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
    assert all(bool(torch.isfinite(a).all()) for a in answers[0])
    return slim, found


def test_a_segmentation_network_with_a_dict_output() -> None:
    torch.manual_seed(0)
    module = segmentation.lraspp_mobilenet_v3_large(**BARE, num_classes=3).eval()
    slim, found = halved(module, IMAGES)
    assert list(slim(IMAGES)) == ["out"]
    assert slim(IMAGES)["out"].shape == (2, 3, 64, 64)
    assert {c.frozen for c in found.all} == {None, "the network's output"}
    scores = Taylor([IMAGES])(module, found)
    assert all(bool(torch.isfinite(s).all()) for s in scores.values())


@pytest.mark.slow
def test_a_detector_with_a_list_output() -> None:
    torch.manual_seed(0)
    module = detection.ssdlite320_mobilenet_v3_large(**BARE, num_classes=3).eval()
    liven(module, (list(IMAGES),))  # statistics of some image, so that answers are finite
    slim, _ = halved(module, (list(IMAGES),))
    answers = slim(list(IMAGES))
    assert [sorted(a) for a in answers] == [["boxes", "labels", "scores"]] * 2
    for head in ("classification_head", "regression_head"):  # what boxes and scores are read from stays
        now, was = (n.get_parameter(f"head.{head}.module_list.0.1.weight").shape[0] for n in (slim, module))
        assert now == was


def test_one_image_will_do_where_a_map_has_one_pixel() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten())
    assert graph.find(net, torch.rand(1, 3, 4, 4))["0"].frozen is None


def test_inspect_lists_what_is_prunable_of_them() -> None:
    found = inspect(InspectOptions(file="torchvision:lraspp_mobilenet_v3_large", prunable=True, size=64))
    assert found.facts["frozen"] == 1
    assert sum(row["prunable"] for row in found.couplings) == found.facts["couplings_found"] - 1


def segmenter() -> Any:
    """A user's own factory."""
    return segmentation.lraspp_mobilenet_v3_large(**BARE, num_classes=3)


def test_inspect_takes_a_users_own_too() -> None:
    found = inspect(InspectOptions(file="tests.prune.test_outputs:segmenter", prunable=True, size=64))
    named = inspect(InspectOptions(file="torchvision:lraspp_mobilenet_v3_large", prunable=True, size=64))
    assert [row["layer"] for row in found.couplings] == [row["layer"] for row in named.couplings]


def test_the_page_shows_how() -> None:
    page = (Path(__file__).parents[2] / "docs" / "prune.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    torch.manual_seed(0)
    said: dict[str, Any] = {}
    exec(code, said)
    now = macs.measure(said["network"], said["example"])[0]
    assert 0.48 * said["dense"] <= now <= 0.5 * said["dense"]
    assert said["network"](said["example"])["out"].shape == (2, 3, 128, 128)
