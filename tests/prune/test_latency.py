"""Latency budgets: what is measured, what is predicted, and plans that stay below the limit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeprune.bench import layer_graphs
from edgeprune.bench.table import Layer, LayerShape, LayerTable
from edgeprune.errors import BudgetNotMet, DataError, UsageError
from edgeprune.plan import PruningPlan
from edgeprune.prune import budget, graph, latency, macs, surgery
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Rules
from edgeprune.prune.latency import Predictor
from edgeprune.prune.macs import Costs
from edgeprune.prune.scores.magnitude import Magnitude


class Net(nn.Module):
    """A plain, a depthwise, a grouped and a residual convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.depth = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.point = nn.Conv2d(32, 64, 1)
        self.grouped = nn.Conv2d(64, 64, 3, 1, 1, groups=4)
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.point(torch.relu(self.depth(torch.relu(self.stem(x)))))
        x = x + torch.relu(self.grouped(torch.relu(x)))
        y: torch.Tensor = self.head(x.mean((2, 3)))
        return y


Case = tuple[nn.Module, Couplings, Costs, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    net = Net().eval()
    found = graph.find(net, torch.randn(2, 3, 16, 16))
    return net, found, macs.trace(net, torch.randn(1, 3, 16, 16), found), Magnitude()(net, found)


def work(shape: LayerShape, inputs: int, outputs: int) -> float:
    """A device on which a layer takes its multiply-adds of one position, in microseconds."""
    each = shape.group[0] if shape.groups == 0 else inputs / shape.groups
    return 1e-3 * outputs * each


def table_of(costs: Costs, fixed: float = 0.1) -> LayerTable:
    made = []
    for grid in latency.grids(costs):
        rows = [tuple(work(grid.shape, i, o) for o in grid.outputs) for i in grid.inputs]
        made.append(Layer(grid.shape, grid.inputs, grid.outputs, tuple(rows)))
    return LayerTable("board", "ort", "fp32", tuple(made), fixed_ms=fixed)


def widths(costs: Costs, plan: PruningPlan) -> np.ndarray:
    return costs.widths({c.root: len(c.keep) for c in plan.cuts})


def test_grids_span_what_pruning_can_reach(case: Case) -> None:
    grids = {(g.shape.op, g.shape.kernel, g.shape.groups): g for g in latency.grids(case[2])}
    assert grids[("Conv", (3, 3), 1)].inputs == (3,)  # the image has three channels at any width
    assert grids[("Conv", (3, 3), 1)].outputs[-1] == 32
    assert grids[("Conv", (3, 3), 0)].inputs == (1,)
    assert grids[("MatMul", (), 1)].outputs == (5,)
    grouped = grids[("Conv", (3, 3), 4)]
    assert grouped.inputs[-1] == grouped.outputs[-1] == 64
    assert all(w % 4 == 0 for w in grouped.inputs)
    assert all(len(g.inputs) <= latency.POINTS for g in grids.values())


def test_every_graph_is_the_layer_it_says(case: Case, tmp_path: Path) -> None:
    made = latency.grids(case[2], points=3)
    count = layer_graphs.write(tmp_path, made, {"macs": 1})
    assert count == len(list(tmp_path.glob("*.onnx"))) == sum(len(g.inputs) * len(g.outputs) for g in made)
    read, facts = layer_graphs.read(tmp_path)
    assert (read, facts) == (made, {"macs": 1})
    for index, grid in enumerate(made):
        i, o = grid.inputs[-1], grid.outputs[-1]
        model = onnx.load(layer_graphs.place(tmp_path, index, i, o))
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
        channel = -1 if grid.shape.op == "MatMul" else 1
        given = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert given[channel] == (o if grid.shape.groups == 0 else i)
        assert (tmp_path / layer_graphs.MANIFEST).is_file()
        assert model.ByteSize() < 1000
    with pytest.raises(DataError, match=r"holds no layers\.json; write the layers with: edgeprune export"):
        layer_graphs.read(tmp_path / "none")


def test_the_prediction_of_a_plan_is_that_of_the_cut_network(case: Case) -> None:
    net, found, costs, scores = case
    predictor = Predictor.of(costs, table_of(costs), costs, 20.0)
    assert predictor.at(costs.full) == pytest.approx(20.0)
    plan = budget.choose(costs, found, scores, {"latency": 10.0}, Rules(), predictor)
    slim = Net().eval()
    slim.load_state_dict(net.state_dict())
    surgery.apply(slim, plan, found)
    example = torch.randn(1, 3, 16, 16)
    after = macs.trace(slim, example, graph.find(slim, example))
    again = Predictor(after, predictor.table, predictor.scale, predictor.rate)
    assert float(again.at(after.full)) == pytest.approx(float(predictor.at(widths(costs, plan))), rel=1e-6)


@pytest.mark.parametrize(
    "middle",
    [
        nn.Conv2d(64, 128, 3, 1, 1, groups=8),  # whole groups go
        nn.Conv2d(64, 128, 3, 1, 1, groups=4),  # each group loses channels
        nn.Conv2d(64, 128, 3, 1, 1, groups=64),  # depthwise, two filters a channel
        nn.ConvTranspose2d(64, 64, 2, 2, groups=64),
    ],
)
def test_a_table_of_the_dense_network_has_the_groups_that_a_cut_leaves(middle: nn.Module) -> None:
    width = 128 if middle.out_channels == 128 else 64
    net = nn.Sequential(nn.Conv2d(3, 64, 1), middle, nn.Conv2d(width, 5, 1)).eval()
    example = torch.randn(1, 3, 4, 4)
    found = graph.find(net, example)
    costs = macs.trace(net, example, found)
    predictor = Predictor(costs, table_of(costs), 1.0, 1e-6)
    plan = budget.choose(
        costs, found, Magnitude()(net, found), {"macs": float(costs.macs(costs.full)) / 2}, Rules()
    )
    slim = copy.deepcopy(net)
    surgery.apply(slim, plan, found)
    after = macs.trace(slim, example, graph.find(slim, example, dense=found))
    again = Predictor(after, predictor.table, 1.0, 1e-6)
    expected = float(predictor.at(widths(costs, plan)))
    assert expected < float(predictor.at(costs.full)) * 0.8
    assert float(again.at(after.full)) == pytest.approx(expected, rel=1e-6)


def test_many_widths_at_once_are_each_alone(case: Case) -> None:
    costs = case[2]
    predictor = Predictor(costs, table_of(costs), 1.3, 1e-5)
    rng = np.random.default_rng(0)
    many = np.stack([rng.integers(1, w + 1, 6) for w in costs.full.astype(int)]).astype(float)
    assert predictor.at(many) == pytest.approx([float(predictor.at(column)) for column in many.T])


def test_layers_that_take_longer_than_the_network_are_scaled(case: Case) -> None:
    costs = case[2]
    table = table_of(costs)
    layers = float(Predictor(costs, table).at(costs.full))
    assert Predictor.of(costs, table, costs, layers / 2).scale == pytest.approx(0.5)
    assert Predictor.of(costs, table, costs, layers / 2).at(costs.full) == pytest.approx(layers / 2)
    assert Predictor.of(costs, table, costs).at(costs.full) == pytest.approx(layers)


def test_the_rest_goes_with_outputs_and_weights(case: Case) -> None:
    costs = case[2]
    table = table_of(costs, fixed=0.0)
    layers = float(Predictor(costs, table).at(costs.full))
    moved = {  # 8 x 8 maps: outputs, then weights
        "stem": 32 * 64 + 32 * 3 * 9,
        "depth": 32 * 64 + 32 * 9,
        "point": 64 * 64 + 64 * 32,
        "grouped": 64 * 64 + 64 * 16 * 9,
        "head": 5 + 5 * 64,
    }
    predictor = Predictor.of(costs, table, costs, 2 * layers)
    assert predictor.rate == pytest.approx(layers / sum(moved.values()))
    for term in costs.terms:
        alone = predictor.term(term, {}) - Predictor(costs, table).term(term, {})
        assert alone == pytest.approx(predictor.rate * moved[term.name])


def test_no_width_of_a_latency_plan_can_be_raised(case: Case) -> None:
    _, found, costs, scores = case
    predictor = Predictor(costs, table_of(costs))
    limit = 0.5 * float(predictor.at(costs.full))
    for rank in ("global", "threshold", "local", "isomorphic"):
        plan = budget.choose(costs, found, scores, {"latency": limit}, Rules(rank=rank), predictor)
        at = widths(costs, plan)
        assert float(predictor.at(at)) <= limit
        assert plan.why["achieved"]["latency"] == pytest.approx(float(predictor.at(at)))
        for root in costs.roots:
            n = costs.roots.index(root)
            wider = at.copy()
            wider[n] += 8
            assert wider[n] > costs.full[n] or float(predictor.at(wider)) > limit
    with pytest.raises(
        BudgetNotMet, match=r"latency [0-9.]+ ms \([0-9.]+ of dense\), asked for at most 0\.001 ms"
    ):
        budget.choose(costs, found, scores, {"latency": 1e-3}, Rules(), predictor)


def test_all_ceilings_hold_together(case: Case) -> None:
    _, found, costs, scores = case
    predictor = Predictor(costs, table_of(costs))
    dense = {"latency": float(predictor.at(costs.full)), "macs": float(costs.macs(costs.full))}
    for shares in ((0.9, 0.4), (0.4, 0.9), (0.5, 0.5)):
        limits = {"latency": shares[0] * dense["latency"], "macs": shares[1] * dense["macs"]}
        plan = budget.choose(costs, found, scores, limits, Rules(), predictor)
        assert all(plan.why["achieved"][k] <= limits[k] for k in limits)
        assert max(plan.why["achieved"][k] / limits[k] for k in limits) > 0.85
    with pytest.raises(UsageError, match="needs ceilings above 0 on macs, params, channels; received"):
        budget.choose(costs, found, scores, {"latency": 1.0}, Rules())


def test_words_of_a_latency_budget() -> None:
    assert budget.Budget.parse(macs=None, params=None, channels=None, latency="0.7x").latency == 0.7
    assert budget.Budget.parse(macs=None, params=None, channels=None, latency="70%").latency == 0.7
    two = budget.Budget.parse(macs="0.5", params=None, channels=None, latency="2.0ms")
    assert two.limits({"macs": 100.0, "latency": 9.0}) == {"macs": 50.0, "latency": 2.0}
    assert str(two) == "macs 0.5, latency 2 ms"
    for word in ("2", "1.5x", "fast", "0ms", "-1ms"):
        with pytest.raises(UsageError, match=rf"--latency {word}: expected what is kept: .* 0.7x, .* 2.0ms"):
            budget.Budget.parse(macs=None, params=None, channels=None, latency=word)
