import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from edgeprune.errors import UsageError
from edgeprune.prune import graph, surgery
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.scores.magnitude import Magnitude

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def roots(couplings: Any) -> Any:
    return [c.root for c in couplings]


def test_a_residual_stream_is_one_coupling_and_blocks_are_inner() -> None:
    found = graph.find(torchvision.models.resnet18(), IMAGE)
    stream = found["conv1"]
    assert (stream.width, stream.inner, stream.frozen) == (64, False, None)
    assert {m.layer for m in stream.members if m.axis == "out"} == {
        "conv1", "bn1", "layer1.0.conv2", "layer1.0.bn2", "layer1.1.conv2", "layer1.1.bn2",
    }  # fmt: skip
    assert {m.layer for m in stream.members if m.axis == "in"} == {
        "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0",
    }  # fmt: skip
    assert found["layer1.0.conv1"].inner
    assert found["fc"].frozen == "the network's output"
    assert len(roots(found)) == 12


def test_couplings_agree_with_torch_pruning_where_its_graph_is_right() -> None:
    import torch_pruning

    module = torchvision.models.resnet18().eval()
    found = graph.find(module, IMAGE, verify=False)
    theirs = torch_pruning.DependencyGraph().build_dependency(module, IMAGE)
    names = {part: name for name, part in module.named_modules()}
    for coupling in found:
        layer = module.get_submodule(coupling.root)
        group = theirs.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=[0])
        out = {
            names[d.target.module]
            for d, _ in group
            if d.target.module in names and "out" in d.handler.__name__
        }
        assert {m.layer for m in coupling.members if m.axis == "out"} == out


def test_dense_connections_keep_each_new_feature_apart() -> None:
    found = graph.find(torchvision.models.DenseNet(32, (2, 2), 64), IMAGE, verify=False)
    first = found["features.denseblock1.denselayer1.conv2"]
    assert first.width == 32
    norm = next(m for m in first.members if m.layer == "features.denseblock1.denselayer2.norm1")
    assert norm.slices == tuple((64 + n,) for n in range(32))


def test_a_flattened_map_belongs_to_its_channel() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(8 * 49, 10))
    member = next(m for m in graph.find(module, IMAGE)["0"].members if m.axis == "in")
    assert (member.layer, member.slices[1]) == ("3", tuple(range(49, 98)))


def test_heads_are_cut_whole_and_their_number_follows() -> None:
    found = graph.find(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64), IMAGE)
    qkv = found["blocks.0.attn.qkv"]
    assert (qkv.width, qkv.unit, qkv.frozen) == (192, 64, None)
    rows = next(m for m in qkv.members if m.layer == "blocks.0.attn.qkv")
    assert rows.slices[0] == (0, 192, 384)
    assert "blocks.0.attn:num_heads" in {s.name for s in qkv.slots}


def test_a_grouped_convolution_loses_whole_groups() -> None:
    module = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, groups=8), nn.Conv2d(32, 10, 1))
    coupling = graph.find(module, IMAGE)["0"]
    assert (coupling.width, coupling.unit, coupling.frozen) == (16, 2, None)
    rows = next(m for m in coupling.members if (m.layer, m.axis) == ("1", "out"))
    assert {i for s in rows.slices[:2] for i in s} == {0, 1, 2, 3}


@pytest.mark.parametrize(("groups", "unit", "sections"), [(8, 16, 1), (4, 1, 4)])
def test_many_groups_go_whole_and_few_stay(groups: int, unit: int, sections: int) -> None:
    """Sixteen channels in each group."""
    width = 16 * groups
    module = nn.Sequential(
        nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, groups=groups), nn.Conv2d(width, 10, 1)
    )
    coupling = graph.find(module, IMAGE)["0"]
    assert (coupling.width, coupling.unit, coupling.sections, coupling.frozen) == (
        width,
        unit,
        sections,
        None,
    )


class Padded(nn.Module):
    """A stage change by the option-A shortcut: every other pixel, zeros for the new channels."""

    def __init__(self, pad: int | None) -> None:
        super().__init__()
        self.stem, self.conv, self.head = (
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.Conv2d(16, 4, 1),
        )
        if pad:
            self.pad = pad

    def forward(self, x: torch.Tensor) -> Any:
        x = F.relu(self.stem(x))
        pad = getattr(self, "pad", None) or 4
        x = F.relu(self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad)))
        return self.head(x)


def test_strided_slices_and_channel_padding_are_followed() -> None:
    found = graph.find(Padded(pad=None), IMAGE)
    stem = found["stem"]
    wide = next(m for m in stem.members if (m.layer, m.axis) == ("conv", "out"))
    assert wide.slices == tuple((4 + n,) for n in range(8))
    assert "writes the number 4" in (found["conv"].frozen or "")


def test_option_a_shortcuts_let_block_outputs_go(plan_of: Any, silence: Any, lively: Any) -> None:
    """ResNet-20/CIFAR: the streams of all three stages are cut, and the strided, padded shortcuts follow."""
    torch.manual_seed(0)
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "resnet_cifar.py"))
    module, image = example["ResNetCIFAR"](3), torch.randn(2, 3, 32, 32)
    found = graph.find(module, image)
    assert [c.root for c in found.all if c.frozen] == ["linear"]
    streams = [c for c in found if not c.inner]
    assert (streams[0].root, streams[0].width) == ("conv1", 16)
    joined = {m.layer for c in streams for m in c.members if m.axis == "out"}
    assert {"layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"} <= joined
    widest = next(m for m in found["conv1"].members if (m.layer, m.axis) == ("layer2.0.conv2", "out"))
    assert widest.slices == tuple((8 + n,) for n in range(16))  # eight zeros before, eight after
    module = lively(module)
    for seed in range(3):
        plan = plan_of(found, 0.5, seed)
        slim = copy.deepcopy(module)
        surgery.apply(slim, plan, found)
        assert slim.layer3[2].conv2.weight.shape[0] < 64
        want, got = silence(module, plan, found)(image.double()), slim(image.double())
        assert torch.allclose(want, got, rtol=1e-8, atol=1e-9)


def test_padding_by_an_attribute_is_free() -> None:
    found = graph.find(Padded(pad=4), IMAGE)
    assert found["conv"].frozen is None
    assert "" in {s.name.partition(":")[0] for s in found["conv"].slots if s.dim < 0}


class Fixed(nn.Module):
    """Its forward writes a width down, which no cut can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.b(self.a(x))
        return self.c(x.reshape(x.shape[0], 8, -1).unsqueeze(-1))


def test_a_blur_with_a_kernel_for_each_channel_is_cut_and_no_score_reads_it(plan_of: Any) -> None:
    blur = timm.layers.blur_pool.BlurPool2d(16)
    module = nn.Sequential(nn.Conv2d(3, 16, 1), blur, nn.Conv2d(16, 4, 1)).eval()
    found = graph.find(module, IMAGE)
    assert [m.tensor for m in found["0"].members] == ["0.weight", "2.weight"]
    assert Magnitude()(module, found)["0"].shape == (16,)
    surgery.apply(module, plan_of(found), found)
    assert module(IMAGE).shape == (2, 4, 32, 32)


class Cross(nn.Module):
    """Attention whose forward reads the width of a head from the stream; queries are of their own width else."""

    def __init__(self, *, half: bool = False) -> None:
        super().__init__()
        self.heads, self.twice = 3, half
        self.stem, self.query, self.key, self.value = (nn.Linear(a, 48) for a in (8, 48, 48, 48))
        self.head = nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = (x := self.stem(x)).shape
        size = c * 2 // (2 * self.heads) if self.twice else c // self.heads
        q = self.query(x[:, :1]).reshape(b, 1, self.heads, size).permute(0, 2, 1, 3)
        k = self.key(x).reshape(b, n, self.heads, size).permute(0, 2, 1, 3)
        v = self.value(x).reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
        y = (q @ k.transpose(2, 3)).softmax(-1) @ v
        out: torch.Tensor = self.head(y.transpose(1, 2).reshape(b, 1, c).squeeze(1))
        return out


@pytest.mark.parametrize("half", [False, True])
def test_a_size_that_the_forward_divides_ties_what_it_measures(*, half: bool, plan_of: Any) -> None:
    """All of one share would fit by chance; any plan has to."""
    module, x = Cross(half=half).eval(), torch.randn(2, 5, 8)
    found = graph.find(module, x)
    assert [c.root for c in found] == ["stem"]
    assert found["stem"].unit == 16, "whole heads go"
    reaches = {m.layer for m in found["stem"].members if m.axis == "out"}
    assert reaches == {"stem", "query", "key", "value"}
    for seed in range(3):
        slim = copy.deepcopy(module)
        surgery.apply(slim, plan_of(found, 0.67, seed), found)
        assert slim(x).shape == (2, 4)


class Lucky(nn.Module):
    """The second layer is read in half as many parts as the first has channels: equal shares fit."""

    def __init__(self) -> None:
        super().__init__()
        self.four = 4
        self.one, self.two, self.head = nn.Linear(8, 32), nn.Linear(8, 64), nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.one(x), self.two(x)
        parts = b.reshape(len(b), a.shape[1] // 2, self.four).flatten(1)
        out: torch.Tensor = self.head(parts) + a.mean(1, keepdim=True)
        return out


def test_what_only_fits_while_all_shrink_alike_is_no_cut(plan_of: Any) -> None:
    module, x = Lucky().eval(), torch.randn(2, 8)
    found = graph.find(module, x)
    assert {c.root for c in found.all} == {"one", "two", "head"}
    for seed, share in enumerate((0.5, 0.25, 0.75)):
        for one in found:
            alone = Couplings((one,))
            slim = copy.deepcopy(module)
            surgery.apply(slim, plan_of(alone, share, seed), found)
            assert slim(x).shape == (2, 4)


def test_what_cannot_be_cut_is_frozen_with_the_reason() -> None:
    found = graph.find(Fixed(), IMAGE)
    assert found["a"].frozen is None
    assert "the forward writes the number 8" in (found["b"].frozen or "")


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(torch.sort(self.a(x), dim=1).values)


def test_an_operator_that_is_not_followed_freezes() -> None:
    assert "sort" in (graph.find(Sorted(), IMAGE)["a"].frozen or "")


def test_keep_freezes_and_a_pattern_without_match_names_the_nearest() -> None:
    module = torchvision.models.resnet18()
    found = graph.find(module, IMAGE, keep=("layer4.*",), verify=False)
    assert "--keep layer4.*" in (found["layer4.0.conv1"].frozen or "")
    assert found["layer1.0.conv1"].frozen is None
    with pytest.raises(UsageError, match=r"--keep layr4: no layer has such a name; did you mean .*'layer4'"):
        graph.find(module, IMAGE, keep=("layr4",))


def test_the_network_is_left_as_it_is() -> None:
    module = torchvision.models.resnet18().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    graph.find(module, IMAGE)
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_channels_last_networks_are_followed(name: str) -> None:
    found = graph.find(timm.create_model(name), torch.randn(1, 3, 224, 224))
    assert [c.root for c in found.all if c.frozen] in (["head.fc"], ["head"])
