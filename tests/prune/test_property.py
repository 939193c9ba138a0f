"""Random small networks with residuals, concatenations, groups, gates, shuffles, strided and padded shortcuts;
several random plans on each: the forward runs, masked equals cut in float64, and a skeleton reloads it bit-equal.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from edgeprune import skeleton
from edgeprune.prune import graph, surgery

KINDS = (
    "plain", "residual", "concat", "grouped", "depthwise", "gate", "chunk", "shuffle", "project", "padded",
)  # fmt: skip
PLANS = 6  # on each of 40 networks


class Block(nn.Module):
    """One kind of block on `width` channels; `out` says how many it makes."""

    def __init__(self, kind: str, width: int, inner: int) -> None:
        super().__init__()
        self.kind, self.out = kind, width
        groups = {"grouped": 4, "depthwise": inner}.get(kind, 1)
        inner = inner * 2 if kind == "chunk" else inner
        self.norm = nn.BatchNorm2d(inner)
        self.first = nn.Conv2d(width, inner, 1)
        self.middle = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.last: nn.Module = nn.Conv2d(inner // 2 if kind == "chunk" else inner, width, 1)
        if kind == "gate":
            self.squeeze, self.excite = nn.Conv2d(inner, 4, 1), nn.Conv2d(4, inner, 1)
        if kind == "project":
            self.out = inner
            self.side, self.last = nn.Conv2d(width, inner, 1), nn.Identity()
        if kind == "concat":
            self.last = nn.Identity()
            self.out = width + inner
        if kind == "padded":
            self.pad, self.out = inner // 4, width + 2 * (inner // 4)
            self.last = nn.Conv2d(inner, self.out, 1, 2)

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.relu(self.norm(self.middle(torch.relu(self.first(x)))))
        if self.kind == "plain":
            return self.last(y)
        if self.kind == "padded":
            return self.last(y) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        if self.kind == "concat":
            return torch.cat([y, x], 1)
        if self.kind == "project":
            return torch.relu(self.side(x) + y)
        if self.kind == "gate":
            y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        if self.kind == "chunk":
            a, b = y.chunk(2, 1)
            y = a * torch.sigmoid(b)
        if self.kind == "shuffle":
            n, c, h, w = y.shape
            y = y.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2)
        return x + self.last(y)


class Random(nn.Module):
    """A stem, random blocks, and a head over the pooled or the flattened map."""

    def __init__(self, blocks: Any, width: int, flatten: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        made = []
        for kind, inner in blocks:
            made.append(Block(kind, width, inner))
            width = made[-1].out
        self.blocks = nn.Sequential(*made)
        self.pool = nn.AdaptiveAvgPool2d(2 if flatten else 1)
        self.head = nn.Linear(width * (4 if flatten else 1), 5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


BLOCK = st.tuples(st.sampled_from(KINDS), st.sampled_from((8, 12, 16)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=st.lists(BLOCK, min_size=1, max_size=4),
    width=st.sampled_from((4, 6, 8)),
    flatten=st.booleans(),
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 1000),
)
def test_masked_equals_cut_on_random_networks(
    blocks: Any,
    width: int,
    flatten: bool,
    share: float,
    seed: int,
    lively: Callable[..., Any],
    plan_of: Callable[..., Any],
    silence: Callable[..., Any],
) -> None:
    torch.manual_seed(seed)
    module = Random(blocks, width, flatten)
    image = torch.randn(2, 3, 6, 6)
    couplings = graph.find(module, image, verify=False)
    assert [c.root for c in couplings.all if c.frozen is not None and c.root != "head"] == []
    module = lively(module)
    for number in range(PLANS):
        plan = plan_of(couplings, 1 - share if number % 2 else share, seed + number)
        slim = copy.deepcopy(module)
        surgery.apply(slim, plan, couplings)
        got = slim(image.double())
        assert torch.allclose(silence(module, plan, couplings)(image.double()), got, rtol=1e-8, atol=1e-9)
        assert torch.equal(reloaded(module, slim)(image.double()), got)
    surgery.apply(module, plan, couplings)  # the same plan on equal networks
    assert torch.equal(module(image.double()), got)


def reloaded(dense: nn.Module, slim: nn.Module) -> nn.Module:
    """The cut network as a checkpoint rebuilds it: a dense skeleton, the attributes that differ, shapes, weights."""
    made = copy.deepcopy(dense)
    state = slim.state_dict()
    skeleton.impose(made, skeleton.diff(dense, slim), {name: tensor.shape for name, tensor in state.items()})
    made.load_state_dict(state, strict=True)
    return made
