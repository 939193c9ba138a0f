"""A plan refuses what surgery could not do, and survives JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import PlanError
from edgeprune.plan import Cut, LowRank, PruningPlan


@pytest.mark.parametrize("keep", [(), (2, 1), (1, 1), (-1, 0), (0, 4)])
def test_a_cut_refuses_channels_that_are_not_there(keep: tuple[int, ...]) -> None:
    with pytest.raises(
        PlanError, match=r"conv: the kept channels must be increasing, at least one, and below 4"
    ):
        Cut("conv", 4, keep)


def test_a_layer_is_named_once() -> None:
    with pytest.raises(PlanError, match="named twice: conv"):
        PruningPlan((Cut("conv", 4, (0,)), Cut("conv", 4, (1,))))
    with pytest.raises(PlanError, match="named twice: conv"):
        PruningPlan((), (LowRank("conv", 2), LowRank("conv", 3)))
    assert PruningPlan(
        (Cut("conv", 4, (0, 1, 2)),), (LowRank("conv", 2),)
    ).low_rank  # cut first, then low rank


def test_helpful_errors() -> None:
    with pytest.raises(PlanError, match="expected cuts with root, width and keep"):
        PruningPlan.from_json({"cuts": [{"root": "conv"}]})
    with pytest.raises(PlanError, match="the rank must be at least 1; received 0"):
        LowRank("fc", 0)


@given(
    st.lists(
        st.integers(1, 40).flatmap(
            lambda w: st.tuples(st.just(w), st.sets(st.integers(0, w - 1), min_size=1).map(sorted))
        ),
        max_size=5,
    )
)
def test_json_keeps_everything(cuts: list[tuple[int, list[int]]]) -> None:
    plan = PruningPlan(
        tuple(Cut(f"layer{i}", w, tuple(k)) for i, (w, k) in enumerate(cuts)), (LowRank("fc", 3),)
    )
    assert PruningPlan.from_json(json.loads(plan.dumps())) == plan
