"""What the cost model predicts for a plan is what the cut network measures, functional attention included."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeprune.errors import PlanError
from edgeprune.prune import graph, macs, surgery
from edgeprune.prune.coupling import Couplings


class Mixed(nn.Module):
    """Residual, concat, depthwise, grouped, transposed convolutions and a head."""

    def __init__(self, a: int, b: int, c: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, a, 3, padding=1)
        self.norm = nn.BatchNorm2d(a)
        self.one = nn.Conv2d(a, b, 1, bias=False)
        self.deep = nn.Conv2d(b, b, 3, padding=1, groups=b)
        self.two = nn.Conv2d(b, a, 1)
        self.left, self.right = nn.Conv2d(a, c, 1), nn.Conv2d(a, 2 * c, 1)
        self.grouped = nn.Conv2d(3 * c, 4 * c, 3, padding=1, groups=1)
        self.up = nn.ConvTranspose2d(4 * c, c, 2, stride=2)
        self.head = nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.two(self.deep(self.one(x).relu()).relu())
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        x = self.up(self.grouped(x).relu()).relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def flops(module: nn.Module, example: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(example)
    return int(counter.get_total_flops()) // 2


def test_dense_numbers_are_torchs() -> None:
    net = Mixed(8, 12, 6)
    example = torch.randn(3, 3, 8, 8)
    assert macs.measure(net, example) == (flops(net, example[:1]), sum(p.numel() for p in net.parameters()))


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 12), st.integers(4, 16), st.integers(3, 9), st.floats(0.1, 0.95), st.integers(0, 99))
def test_prediction_is_measurement(a: int, b: int, c: int, share: float, seed: int) -> None:
    torch.manual_seed(seed)
    net = Mixed(a, b, c).eval()
    example = torch.randn(2, 3, 8, 8)
    _check(net, example, graph.find(net, example, verify=False), share, seed)


@pytest.mark.parametrize(
    "name", ["resnet10t", "vit_tiny_patch16_224", "mixer_s32_224", "regnetx_002", "coat_lite_tiny"]
)
def test_prediction_is_measurement_on_families(name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False).eval()
    size = 224 if "224" in name or "coat" in name else 64
    example = torch.randn(1, 3, size, size)
    _check(net, example, graph.find(net, example, verify=False), 0.5, 0)


def _check(net: nn.Module, example: Tensor, couplings: Couplings, share: float, seed: int) -> None:
    from edgeprune.plan import Cut, PruningPlan

    rng = np.random.default_rng(seed)
    costs = macs.trace(net, example, couplings)
    assert (costs.macs(costs.full), costs.params(costs.full)) == macs.measure(net, example)
    cuts = []
    for coupling in couplings:
        units = coupling.width // coupling.unit // coupling.sections
        run = coupling.width // coupling.sections
        stay = sorted(rng.permutation(units)[: max(1, round(share * units))].tolist())
        keep = [
            s * run + u * coupling.unit + i
            for s in range(coupling.sections)
            for u in stay
            for i in range(coupling.unit)
        ]
        cuts.append(Cut(coupling.root, coupling.width, tuple(keep)))
    small = copy.deepcopy(net)
    surgery.apply(small, PruningPlan(tuple(cuts)), couplings)
    widths = costs.widths({c.root: len(c.keep) for c in cuts})
    assert (costs.macs(widths), costs.params(widths)) == macs.measure(small, example)
    assert macs.measure(small, example)[0] == flops(small, example[:1])
    many = np.stack([widths, costs.full], axis=1)
    assert costs.macs(many).tolist() == [costs.macs(widths), costs.macs(costs.full)]
    assert costs.macs(widths, pad=8) >= costs.macs(widths)


def test_padded_macs_are_those_of_rounded_widths() -> None:
    net = nn.Sequential(nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1))
    example = torch.randn(1, 8, 4, 4)
    costs = macs.trace(net, example, Couplings(()))
    assert costs.macs(costs.full) == 16 * (8 * 12 * 2)
    assert costs.macs(costs.full, pad=8) == 16 * (8 * 16 * 2)
    with pytest.raises(PlanError, match="no coupling that can be cut is rooted at 'x'"):
        costs.widths({"x": 1})


def test_work_is_macs_and_what_is_moved() -> None:
    """Outputs and weights by hand: a strided grouped convolution, a transposed one, a linear layer."""
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(8, 6, 2),
        nn.Flatten(),
        nn.LazyLinear(5),
    )
    example = torch.randn(1, 4, 8, 8)
    net.eval()(example)
    costs = macs.trace(net, example, Couplings(()))
    moved = (
        8 * 16 + 8 * 2 * 9 + 6 * 16 + 8 * 6 * 4 + 5 + 5 * 150
    )  # of a transposed one, its input's positions
    assert costs.work(costs.full) == macs.measure(net, example)[0] + macs.MOVING * moved


def test_it_leaves_the_network_as_it_was() -> None:
    net = Mixed(8, 12, 6).train()
    before = copy.deepcopy(net.state_dict())
    example = torch.randn(2, 3, 8, 8)
    macs.trace(net, example, graph.find(net, example, verify=False))
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
