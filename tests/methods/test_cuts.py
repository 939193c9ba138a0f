"""Several cuts are one cut of the dense network: names, factors and ceilings stay what they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune.data.batches import Batches
from edgeprune.errors import BudgetNotMet, UsageError
from edgeprune.images import Preprocess
from edgeprune.methods import outcome, parts, work
from edgeprune.methods.auto import AutoPruning
from edgeprune.methods.job import Job
from edgeprune.methods.tana import TANA
from edgeprune.model import Network
from edgeprune.options import PruneOptions
from edgeprune.prune import graph, surgery
from edgeprune.prune.budget import Budget
from tests.methods.conftest import pixels


class Split(nn.Module):
    """What one layer makes is split into parts of 16 and 32 channels with readers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [16, 32]
        self.make = nn.Conv2d(3, 48, 1)
        self.one, self.two = nn.Conv2d(16, 16, 1), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.make(x).relu().split(self.sizes, 1)
        out: Tensor = self.head(torch.cat([self.one(a), self.two(b)], 1).mean((2, 3)))
        return out


class Grouped(nn.Module):
    """Ten groups of 16 channels, enough for whole groups to go; after a cut they are few."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.middle = nn.Conv2d(3, 160, 1), nn.Conv2d(160, 160, 3, 1, 1, groups=10)
        self.head = nn.Linear(160, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.make(x).relu()).relu().mean((2, 3)))
        return out


def job(module: nn.Module, **words: Any) -> Job:
    torch.manual_seed(0)
    network = Network(
        module.eval(), "here", Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3), tuple("abcd"), "head"
    )
    given = {"macs": "0.3", "iterations": 3, "recover": 0.0, "multiple": 1, "batch": 16, **words}
    kinds = {kind: given.get(kind) for kind in ("macs", "params", "channels")}
    return Job.of(network, (pixels(32, 40, None), None), Budget.parse(**kinds), PruneOptions(**given), None)


@pytest.mark.parametrize("make", [Split, Grouped])
def test_the_plan_of_three_cuts_is_one_cut_of_the_dense_network(make: type[nn.Module]) -> None:
    torch.manual_seed(1)
    found = job(make(), bn_recal=False, keep_out=("one", "two") if make is Split else ())
    dense = copy.deepcopy(found.dense)
    AutoPruning()(found)
    assert len(found.plans) == 3
    plan = outcome.whole_plan(found)
    assert plan is not None
    assert {c.root for c in plan.cuts} == ({"make", "make@2"} if make is Split else {"make"})
    again = copy.deepcopy(dense)
    surgery.apply(again, plan, graph.find(dense, torch.zeros(2, 3, 8, 8)))
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x), found.network.module.eval()(x))
    if make is Grouped:
        middle = found.network.module.get_submodule("middle")
        assert isinstance(middle, nn.Conv2d)
        assert middle.groups < 6
        assert middle.weight.shape[1] == 16


def test_a_schedule_is_the_users_with_the_methods_number_of_cuts() -> None:
    shares = {}
    for kind in (None, "linear", "cubic"):
        torch.manual_seed(1)
        found = job(Split(), iterations=None, recover=3.0, schedule=kind, macs="0.4", bn_recal=False)
        TANA(cuts=3)(found)
        shares[kind] = [cut["macs"] for cut in found.trace]
    assert [len(cuts) for cuts in shares.values()] == [3, 3, 3]
    assert shares[None] == shares["linear"]
    assert shares["linear"][0] > shares["cubic"][0]


def test_channels_are_a_share_of_those_that_can_be_cut() -> None:
    found = job(Grouped(), channels="0.5", macs=None, iterations=1, bn_recal=False)
    AutoPruning()(found)
    now, before = found.channels
    assert 0 < now <= 0.5 * before


def test_a_budget_on_what_is_not_there_says_so() -> None:
    found = job(Split(), channels="0.5", macs=None, keep=("make", "one", "two"))
    with pytest.raises(
        UsageError, match=r"--channels: the network has none that can be cut; `edgeprune inspect"
    ):
        parts.limits(found)


def test_a_network_of_which_nothing_can_go_says_so() -> None:
    said = (
        r"the smallest plan possible has macs .* \(1\.000 of dense\), asked for at most .*: ask for that or more, "
        r"or free layers named by --keep or lower --floor from 0\.1 or take a network with"
    )
    with pytest.raises(BudgetNotMet, match=said):
        AutoPruning()(job(Split(), keep=("*",)))


def test_a_budget_that_widths_cannot_fill_says_which_step_is_too_much() -> None:
    found = job(Split(), keep_out=("one", "two"), multiple=16, macs="0.9", iterations=1, bn_recal=False)
    AutoPruning()(found)
    (said,) = outcome.unfilled(found)
    assert said == (
        "74.2% of the budget on macs is used: the next step, make@2 from 16 to 32 channels, would use 111.1%"
    )
    fine = job(Split(), macs="0.6", iterations=1, bn_recal=False)
    AutoPruning()(fine)
    assert outcome.unfilled(fine) == []


def test_short_stages_go_on_through_the_images() -> None:
    """Three recoveries of a third of a pass each: every image once, but for what steps of whole batches leave."""
    found = job(Split(), recover=1.0, between=1 / 3, batch=5, bn_recal=False)
    seen: list[int] = []
    at = Batches.at

    def noted(self: Batches, step: int) -> Any:
        made = at(self, step)
        seen.extend(made.index.tolist())
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "at", noted)
        AutoPruning()(found)
    assert len(found.steps) == 3
    assert len(seen) == 5 * sum(found.steps) >= 25
    assert len(set(seen)) == min(len(seen), 32), "no image twice before all came once"


def test_a_step_of_several_batches_is_so_many_images() -> None:
    one, four = (job(Split(), accumulate=n) for n in (1, 4))
    objective = parts.chosen_objective(one)
    assert work.images_a_step(four, objective) == 4 * work.images_a_step(one, objective)
    assert work.steps(one, objective, 8.0) == 4 * work.steps(four, objective, 8.0)


def test_a_network_that_is_larger_than_planned_is_told() -> None:
    found = job(Split(), macs="0.6", iterations=1, bn_recal=False)
    ceiling = parts.limits(found)[-1]["macs"]
    AutoPruning()(found)
    assert outcome.exceeded(found, {"macs": ceiling, "params": 1e9}) == []
    (said,) = outcome.exceeded(found, {"macs": 2 * ceiling})
    assert said.endswith(f"more than the {ceiling:,.0f} that were asked for")
