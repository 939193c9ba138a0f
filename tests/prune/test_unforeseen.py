"""What no rule foresaw, outputs that are no numbers, and attention that is used in unusual ways."""

import copy
import runpy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeprune.errors import ModelError
from edgeprune.prune import graph, surgery
from edgeprune.prune.coupling import Couplings

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def roots(couplings: Any) -> list[str]:
    return [c.root for c in couplings]


class Odd(nn.Module):
    """A grouped convolution whose kernel is computed: no rule says what its rows are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 4, 1)
        self.c, self.d = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.a(x)
        sobel = torch.stack([torch.eye(3), torch.eye(3).flip(0)])[:, None].repeat(x.shape[1], 1, 1, 1)
        return self.d(self.c(self.b(F.conv2d(x, sobel, padding=1, groups=x.shape[1]))))


def test_what_no_rule_foresaw_freezes_and_the_rest_is_cut() -> None:
    found = graph.find(Odd(), IMAGE)
    assert "conv" in (found["a"].frozen or "")
    assert found["c"].frozen is None


class Classes(nn.Module):
    """Says the class of each pixel, not how sure it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 21, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(self.a(x).relu()).argmax(1)


def test_where_classes_are_the_output_none_of_them_goes() -> None:
    found = graph.find(Classes(), IMAGE)
    assert found["b"].frozen == "the network: its position is the answer"
    assert found["a"].frozen is None


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return runpy  # any object that is no tensor and holds none


def test_an_output_that_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ModelError, match="the network returns module: no tensor to compare"):
        graph.find(Hidden(), IMAGE)


class Pooled(nn.Module):
    """An attention whose answer is added to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 8, 8)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.hidden, self.head = nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0].mean(1)
        return self.head(self.hidden(x).relu())


def test_an_attention_is_cut_in_its_outputs_alone(plan_of: Any) -> None:
    module = Pooled().eval()
    found = graph.find(module, IMAGE)
    assert "attention.out_proj" in roots(found)
    for one in found:
        slim = copy.deepcopy(module)
        surgery.apply(slim, plan_of(Couplings((one,))), found)
        assert slim(IMAGE).shape == (2, 3)


def test_an_encoder_layer_of_torch_loses_heads_and_stream(plan_of: Any) -> None:
    """Its fast path reads the attention's weights past any forward of ours."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    module = nn.Sequential(nn.Linear(8, 32), layer, nn.Linear(32, 3)).eval()
    x = torch.randn(2, 5, 8)
    found = graph.find(module, x)
    assert {c.root: c.frozen for c in found.all if c.frozen} == {"2": "the network's output"}
    assert len(roots(found)) >= 3  # stream, heads, hidden
    slim = copy.deepcopy(module)
    surgery.apply(slim, plan_of(found), found)
    with torch.no_grad():  # where the fast path is taken
        assert slim(x).shape == (2, 5, 3)


def test_keep_takes_the_names_that_couplings_are_printed_by() -> None:
    module = Pooled().eval()
    root = next(r for r in roots(graph.find(module, IMAGE)) if "in_proj" in r)
    kept = graph.find(module, IMAGE, keep=(root,))
    assert all("in_proj" not in r for r in roots(kept))
