"""Times of pairs: the graphs that are timed are those of the two factors, each once, and their times add up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgeprune.bench import layers
from edgeprune.prune import lowrank, macs, pair_times, surgery
from edgeprune.prune.coupling import Couplings


class Mixed(nn.Module):
    """A strided convolution, one of the same shape twice, a pointwise one that runs two times, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 5, stride=2, padding=2)
        self.left, self.right = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.again = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = self.again(self.again(self.left(x).relu() + self.right(x)).relu())
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


def macs_of(path: Path) -> float:
    """MACs of the layer in a file, from the graph alone."""
    graph = onnx.load(path).graph
    node = next(n for n in graph.node if n.name == "layer")
    x = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    weight = numpy_helper.to_array(graph.initializer[0])
    if node.op_type == "MatMul":
        return float(math.prod(x[:-1]) * math.prod(weight))
    words = {a.name: list(a.ints) for a in node.attribute if a.ints}
    positions = [
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(x[2:], words["pads"], words["kernel_shape"], words["strides"], strict=False)
    ]
    return float(math.prod(positions) * math.prod(weight))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A device on which one MAC takes a millisecond; what it was given to time."""
    seen: list[float] = []

    def layer_ms(path: Path, threads: int, scratch: Path) -> float:
        seen.append(macs_of(path))
        return seen[-1]

    monkeypatch.setattr(layers, "layer_ms", layer_ms)
    return seen


def test_layers_and_pairs_are_what_the_network_would_run(timed: list[float]) -> None:
    module, x = Mixed().eval(), torch.zeros(1, 3, 16, 16)
    names = ("stem", "left", "right", "again", "head")
    costs = macs.trace(module, x, Couplings(()))
    found = pair_times.measure(costs, dict.fromkeys(names, 6), 2)
    dense = macs.measure(module, x)[0]
    assert sum(found[name].whole for name in names) == dense
    for name in names:
        layer: Any = module.get_submodule(name)
        n, m = layer.weight.flatten(1).shape[1], len(layer.weight)
        for rank in (2, 3, 6):
            slim = Mixed().eval()
            surgery.split(
                slim, name, lowrank.Factors(torch.ones(rank, n), torch.ones(m, rank), layer.bias.detach())
            )
            saved = dense - macs.measure(slim, x)[0]
            assert found[name].whole - found[name].pair(rank) == pytest.approx(saved), (name, rank)


def test_equal_graphs_are_timed_once_and_ranks_are_few(timed: list[float]) -> None:
    costs = macs.trace(Mixed().eval(), torch.zeros(1, 3, 16, 16), Couplings(()))
    found = pair_times.measure(costs, {"left": 14, "right": 14}, 4)
    assert found["left"] == found["right"]
    assert found["left"].ranks == (4, 8, 12)
    assert len(timed) == 1 + 2 * 3
    assert len(pair_times.measure(costs, {"left": 500}, 1)["left"].ranks) <= pair_times.POINTS
    assert pair_times.measure(costs, {"elsewhere": 4}, 1) == {}
    assert pair_times.measure(costs, {"left": 7}, 8) == {}


def test_this_machine_times_them() -> None:
    costs = macs.trace(Mixed().eval(), torch.zeros(1, 3, 16, 16), Couplings(()))
    found = pair_times.measure(costs, {"left": 8, "head": 8}, 8)
    assert set(found) == {"left", "head"}
    assert all(one.whole > 0 and min(one.pairs) > 0 for one in found.values())
