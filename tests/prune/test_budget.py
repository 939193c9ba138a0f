"""Budgets are ceilings, filled as far as legal widths allow; ladders respect multiples, floors, units and sections."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.errors import BudgetNotMet, PlanError, UsageError
from edgeprune.plan import PruningPlan
from edgeprune.prune import budget, graph, macs, search
from edgeprune.prune.budget import Budget
from edgeprune.prune.coupling import Coupling, Couplings
from edgeprune.prune.ladder import RANKS, Rules, ladder, legal
from edgeprune.prune.scores import Relative


def chain(widths: list[int]) -> tuple[nn.Sequential, torch.Tensor, Couplings, macs.Costs]:
    sizes = [3, *widths]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 4)).eval()
    example = torch.randn(1, 3, 8, 8)
    couplings = graph.find(net, example, verify=False)
    return net, example, couplings, macs.trace(net, example, couplings)


def scores_of(couplings: Couplings, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {c.root: torch.rand(c.width, generator=generator) for c in couplings}


def share(costs: macs.Costs, plan: PruningPlan, kind: str = "macs") -> float:
    widths = costs.widths({c.root: len(c.keep) for c in plan.cuts})
    return float(search.gauges(costs)[kind](widths))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(3, 40), min_size=1, max_size=4),
    st.floats(0.15, 1.0),
    st.sampled_from(RANKS),
    st.sampled_from([1, 4, 8]),
    st.integers(0, 9),
)
def test_a_ceiling_that_is_filled(
    widths: list[int], kept: float, rank: str, multiple: int, seed: int
) -> None:
    _, _, couplings, costs = chain(widths)
    limit = kept * float(costs.macs(costs.full))
    rules = Rules(multiple, 0.1, rank)
    every = itertools.product(*[legal(c, rules) for c in couplings])
    options = np.array(list(every), dtype=float).T
    reachable = costs.macs(options)
    if reachable.min() > limit:
        with pytest.raises(BudgetNotMet, match="the smallest plan possible has macs"):
            budget.choose(costs, couplings, scores_of(couplings, seed), {"macs": limit}, rules)
        return
    plan = budget.choose(costs, couplings, scores_of(couplings, seed), {"macs": limit}, rules)
    got = share(costs, plan)
    assert got == plan.why["achieved"]["macs"] <= limit
    if options.shape[1] <= search.FEW:
        assert got >= 0.98 * limit or got == reachable[reachable <= limit].max()
    for cut in plan.cuts:
        assert len(cut.keep) in legal(couplings[cut.root], rules)
    if plan.cuts:
        assert plan.why["next"]["macs"] > limit
    again = budget.choose(costs, couplings, scores_of(couplings, seed), {"macs": limit}, rules)
    assert again.dumps() == plan.dumps()


def test_several_ceilings_all_hold() -> None:
    _, _, couplings, costs = chain([32, 64, 64, 128])
    dense = {kind: float(gauge(costs.full)) for kind, gauge in search.gauges(costs).items()}
    limits = Budget(macs=0.5, params=0.3, channels=0.7).limits(dense)
    plan = budget.choose(costs, couplings, scores_of(couplings, 0), limits, Rules())
    for kind, limit in limits.items():
        assert share(costs, plan, kind) <= limit
    assert max(share(costs, plan, k) / v for k, v in limits.items()) >= 0.98


def test_a_budget_of_channels_leaves_block_outputs_whole() -> None:
    costs_of = chain([32, 64, 64])
    outer = Couplings(tuple(_outer(c, i == 1) for i, c in enumerate(costs_of[2].all)))
    costs = macs.trace(costs_of[0], costs_of[1], outer)
    limit = 0.5 * float(costs.channels(costs.full))
    plan = budget.choose(costs, outer, scores_of(outer, 0), {"channels": limit}, Rules())
    assert list(outer)[1].root not in {c.root for c in plan.cuts}
    assert plan.why["achieved"]["channels"] == limit == 48
    # beside another budget, which they alone can meet, they go
    low = {"channels": limit, "macs": 0.2 * float(costs.macs(costs.full))}
    both = budget.choose(costs, outer, scores_of(outer, 0), low, Rules())
    assert list(outer)[1].root in {c.root for c in both.cuts}
    assert all(both.why["achieved"][kind] <= ceiling for kind, ceiling in low.items())


def _outer(coupling: Coupling, is_outer: bool) -> Coupling:
    from dataclasses import replace

    return replace(coupling, inner=not is_outer)


def test_nothing_is_cut_when_all_fits() -> None:
    net, example, couplings, costs = chain([16, 32])
    plan = budget.plan(
        net, example, couplings, scores_of(couplings, 0), {"macs": float(costs.macs(costs.full))}
    )
    assert plan.cuts == ()
    assert plan.why["next"] is None


def test_the_weakest_channels_go_and_ties_are_deterministic() -> None:
    coupling = Coupling("a", 16, ())
    score = torch.arange(16.0)
    assert ladder(coupling, score, Rules(1, 0)).keep(4) == (12, 13, 14, 15)
    assert ladder(coupling, torch.ones(16), Rules(1, 0)).keep(4) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("coupling", "rules", "widths"),
    [
        (Coupling("a", 32, ()), Rules(8, 0.1), (8, 16, 24, 32)),
        (Coupling("odd", 20, ()), Rules(8, 0.1), (8, 16, 20)),
        (Coupling("narrow", 8, ()), Rules(8, 0.1), (8,)),
        (Coupling("floor", 64, ()), Rules(8, 0.5), (32, 40, 48, 56, 64)),
        (Coupling("heads", 192, (), unit=64), Rules(8, 0.1), (64, 128, 192)),
        (Coupling("few heads", 60, (), unit=20), Rules(8, 0.1), (20, 40, 60)),
        (Coupling("groups", 48, (), sections=3), Rules(8, 0.1), (24, 48)),
        (Coupling("two groups", 32, (), sections=2), Rules(32, 0.1), (16, 32)),
        (Coupling("four groups", 48, (), sections=4), Rules(32, 0.1), (16, 32, 48)),
        (Coupling("heads, int8", 96, (), unit=12), Rules(32, 0.1), (48, 96)),
        (Coupling("wide groups", 128, (), sections=4), Rules(8, 0.1), (32, 64, 96, 128)),
    ],
)
def test_legal_widths(coupling: Coupling, rules: Rules, widths: tuple[int, ...]) -> None:
    assert legal(coupling, rules) == widths


@pytest.mark.parametrize(
    ("now", "dense", "multiple", "widths"),
    [
        (Coupling("groups", 32, (), sections=4), 64, 8, (32,)),
        (Coupling("groups", 64, (), sections=4), 128, 8, (32, 64)),
        (Coupling("heads", 40, (), unit=20), 80, 8, (40,)),
        (Coupling("int8", 96, (), unit=24), 192, 32, (96,)),
        (Coupling("plain", 32, ()), 64, 8, (8, 16, 24, 32)),
    ],
)
def test_after_a_cut_no_width_is_legal_that_was_not_before(
    now: Coupling, dense: int, multiple: int, widths: tuple[int, ...]
) -> None:
    before = Coupling(now.root, dense, (), unit=now.unit, sections=now.sections)
    found = legal(now, Rules(multiple, 0.1, dense={now.root: dense}))
    assert found == widths
    assert set(found) <= set(legal(before, Rules(multiple, 0.1)))


def test_units_and_sections_are_kept() -> None:
    torch.manual_seed(0)
    heads = Coupling("heads", 12, (), unit=4)
    kept = ladder(heads, torch.tensor([0.0] * 4 + [9.0] * 4 + [5.0] * 4), Rules(1, 0)).keep(8)
    assert kept == (4, 5, 6, 7, 8, 9, 10, 11)
    three = Coupling("three", 12, (), sections=3)
    scores = torch.tensor([9.0, 0, 0, 0, 0, 1, 0, 3, 0, 0, 1, 0])
    assert ladder(three, scores, Rules(1, 0)).keep(6) == (0, 3, 4, 7, 8, 11)


def test_ranks_differ_as_they_say() -> None:
    net, example, couplings, _ = chain([32, 32, 32])
    first, second, third = (c.root for c in couplings)
    scores = {first: torch.arange(32) + 1000.0, second: torch.arange(32) + 1.0, third: torch.arange(32) + 1.0}
    kept = {}
    for rank in RANKS:
        limit = {"macs": 0.6 * float(macs.measure(net, example)[0])}
        plan = budget.plan(net, example, couplings, scores, limit, multiple=1, rank=rank)
        kept[rank] = plan.why["widths"]
    assert kept["threshold"][first] == [32, 32]
    assert kept["global"][first] == [32, 32]
    assert kept["threshold"][second][0] == pytest.approx(kept["threshold"][third][0], abs=1)
    assert kept["global"][second][0] < kept["global"][third][0] - 3, (
        "two products read or make it, one the third"
    )
    local = [w for w, _ in kept["local"].values()]
    assert max(local) - min(local) <= 2
    assert kept["isomorphic"][second][0] == pytest.approx(kept["isomorphic"][third][0], abs=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=9, max_size=24), st.floats(0.1, 10), st.sampled_from([1, 3, 8]))
def test_damage_is_what_is_lost_over_what_is_left(scores: list[float], scale: float, multiple: int) -> None:
    values = torch.tensor(scores, dtype=torch.double)
    one = ladder(Coupling("a", len(scores), ()), values, Rules(multiple, 0.0), scale)
    whole = math.fsum(scores)
    for width, damage in zip(one.widths, one.damage, strict=True):
        kept = math.fsum(scores[c] for c in one.keep(width))
        if kept > 1e-6 * whole:
            assert damage == pytest.approx(scale * whole * (whole - kept) / kept, rel=1e-6, abs=1e-9)
    steps = [one.lost(j) for j in range(len(one.widths) - 1)]
    slopes = [step / (b - a) for step, (a, b) in zip(steps, itertools.pairwise(one.widths), strict=True)]
    assert all(a >= b - 1e-9 * (1 + b) for a, b in itertools.pairwise(slopes))
    assert sum(steps) == pytest.approx(one.damage[0])


def test_channels_without_worth_go_for_nothing() -> None:
    one = ladder(Coupling("a", 16, ()), torch.tensor([0.0] * 8 + [1.0] * 8), Rules(4, 0.0))
    assert one.damage == (8.0, 0.0, 0.0, 0.0)
    assert ladder(Coupling("a", 16, ()), torch.zeros(16), Rules(4, 0.0)).damage == (0.0,) * 4


class Stream(nn.Module):
    """Two residual blocks on one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1)) for _ in range(2)
        )
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


def test_scores_of_mean_one_weigh_a_coupling_by_its_layers() -> None:
    """A channel of the stream saves twice as many MACs as one inside a block, and three times as many layers use it."""
    net, example = Stream().eval(), torch.randn(1, 3, 8, 8)
    couplings = graph.find(net, example, verify=False)
    limits = {"macs": 0.6 * float(macs.measure(net, example)[0])}
    kept = []
    for kind in (Relative, dict):  # the second compare as they are
        flat = kind({c.root: torch.ones(c.width) for c in couplings})
        widths = budget.plan(net, example, couplings, flat, limits, multiple=1).why["widths"]
        kept.append((widths["stem"][0], widths["blocks.0.0"][0]))
    assert kept[0][0] > kept[1][0]
    assert kept[0][1] < kept[1][1]


def test_of_equal_macs_the_plan_that_moves_less() -> None:
    """Two couplings of equal scores and MACs, 1024 x 32 x 19 and 256 x 76 x 32: the larger pictures go first."""
    net = nn.Sequential(
        nn.Conv2d(3, 32, 1),
        nn.Conv2d(32, 16, 1),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 76, 1),
        nn.Conv2d(76, 16, 1),
    ).eval()
    net = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()
    example = torch.randn(1, 3, 32, 32)
    couplings = graph.find(net, example, keep_out=("1", "4"), verify=False)
    costs = macs.trace(net, example, couplings)
    flat = {c.root: torch.full((c.width,), 100 / c.width) for c in couplings}
    plan = budget.choose(costs, couplings, flat, {"macs": 0.7 * float(costs.macs(costs.full))}, Rules(1))
    widths = {root: now / before for root, (now, before) in plan.why["widths"].items()}
    assert widths["0"] < widths["3"]


def test_words() -> None:
    assert Budget.parse(macs="0.4", params="1.2M", channels="40%") == Budget(0.4, 1.2e6, 0.4)
    assert str(Budget(0.4, 1.2e6, 250)) == "macs 0.4, params 1.2 M, channels 250"
    assert Budget.parse(macs="200000", params=None, channels="250") == Budget(2e5, None, 250)
    with pytest.raises(
        UsageError, match=r"--channels 1\.5: .* a fraction up to 1, such as 0\.4, or a number such as 250"
    ):
        Budget.parse(macs=None, params=None, channels="1.5")
    assert Budget().empty
    with pytest.raises(UsageError, match="--macs 12: expected what is kept"):
        Budget.parse(macs="12", params=None, channels=None)
    with pytest.raises(UsageError, match="did you mean 'local'"):
        Rules(rank="lokal")


def test_a_network_that_cannot_be_cut() -> None:
    net, example, _, costs = chain([16])
    with pytest.raises(BudgetNotMet, match=r"\(1\.000 of dense\)"):
        budget.plan(net, example, Couplings(()), {}, {"macs": 0.5 * float(costs.macs(costs.full))})
    assert budget.plan(net, example, Couplings(()), {}, {"macs": 1e9}).cuts == ()


def test_helpful_errors() -> None:
    net, example, couplings, _ = chain([16, 16])
    root = next(iter(couplings)).root
    with pytest.raises(PlanError, match=f"{root}: no scores for this coupling"):
        budget.plan(net, example, couplings, {}, {"macs": 1e3})
    wrong = {c.root: torch.full((c.width,), float("nan")) for c in couplings}
    with pytest.raises(PlanError, match="expected 16 finite scores; received 16, of which 0 are finite"):
        budget.plan(net, example, couplings, wrong, {"macs": 1e3})
    with pytest.raises(UsageError, match="a budget needs ceilings above 0"):
        budget.plan(net, example, couplings, {}, {"watts": 1.0})
