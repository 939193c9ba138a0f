"""Masks: zero removes as surgery does, gradients arrive, each image can have its own; the projection is the nearest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.digits_net import DigitsNet
from edgeprune.prune import graph, surgery
from edgeprune.prune.coupling import Coupling, Couplings
from edgeprune.prune.masks import Layout, masked, project


def of(*shapes: tuple[int, int, int]) -> Layout:
    """Couplings of (width, unit, sections)."""
    made = (
        Coupling(f"c{n}", width, (), unit=unit, sections=sections)
        for n, (width, unit, sections) in enumerate(shapes)
    )
    return Layout(Couplings(tuple(made)))


def nearest(values: Any, k: int, legal: Callable[[tuple[int, ...]], bool]) -> float:
    """The least ||z - a||^2 over all binary z with k ones that are legal."""
    n = len(values)
    tried = [
        sum((values[i] - (i in kept)) ** 2 for i in range(n))
        for kept in combinations(range(n), k)
        if legal(kept)
    ]
    return float(min(tried))


LEGAL: dict[tuple[int, int, int], Callable[[tuple[int, ...]], bool]] = {
    (7, 1, 1): lambda kept: True,
    (8, 2, 1): lambda kept: all((i ^ 1) in kept for i in kept),
    (8, 1, 2): lambda kept: all((i + 4) % 8 in kept for i in kept),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", LEGAL, ids=str)
def test_projection_is_the_nearest_legal_choice(shape: tuple[int, int, int], seed: int) -> None:
    layout, generator = of(shape, (3, 1, 1)), torch.Generator().manual_seed(seed)
    flat = torch.randn(layout.size, generator=generator, dtype=torch.float64) + 0.5
    for k in (2, 4):
        z = project(layout, flat, {"c0": k, "c1": 2})
        assert z.dtype == torch.bool
        assert [int(part.sum()) for part in layout.split(z).values()] == [k, 2]
        for (root, part), legal in zip(layout.split(z).items(), (LEGAL[shape], LEGAL[7, 1, 1]), strict=True):
            values = flat[layout.places[root]].numpy()
            assert legal(tuple(part.nonzero().flatten().tolist()))
            distance = float(((values - part.numpy()) ** 2).sum())
            assert distance == pytest.approx(nearest(values, int(part.sum()), legal), abs=1e-12)


def test_equal_channels_go_from_the_end() -> None:
    z = project(of((4, 1, 1)), torch.tensor([1.0, 2.0, 1.0, 1.0]), {"c0": 2})
    assert z.tolist() == [True, True, False, False]


@pytest.fixture
def network(lively: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return lively(DigitsNet())


X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


def test_zero_is_what_surgery_does(network: nn.Module, plan_of: Callable[..., Any]) -> None:
    couplings = graph.find(network, X.float()[:1].double(), verify=False)
    plan = plan_of(couplings)
    values = {one.root: torch.ones(one.width) for one in couplings}
    for cut in plan.cuts:
        values[cut.root] = torch.zeros(cut.width).index_fill_(0, torch.tensor(cut.keep), 1)
    seen: list[tuple[int, bool]] = []

    def look(images: int, training: bool) -> dict[str, Tensor]:
        seen.append((images, training))
        return values

    with torch.no_grad():
        dense = network(X)
        with masked(network, couplings, look):
            silenced = network(X)
        assert torch.equal(network(X), dense)  # and gone again
        surgery.apply(network, plan, couplings)
        torch.testing.assert_close(silenced, network(X))
    assert seen == [(4, False)]
    assert not torch.allclose(silenced, dense)


def test_every_image_can_have_its_own(network: nn.Module) -> None:
    couplings = graph.find(network, X[:1], verify=False)
    layout = Layout(couplings)
    each = torch.rand(4, layout.size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        with masked(network, couplings, lambda n, _: layout.split(each)):
            whole = network(X)
        for row in range(4):
            with masked(network, couplings, lambda n, _, row=row: layout.split(each[row])):  # type: ignore[misc]
                torch.testing.assert_close(network(X[row : row + 1]), whole[row : row + 1])


def test_gradients_of_masks_are_differences(network: nn.Module) -> None:
    couplings = graph.find(network, X[:1], verify=False)
    layout = Layout(couplings)
    mask = torch.rand(layout.size, generator=torch.Generator().manual_seed(3)).double().requires_grad_()

    def loss(value: Tensor) -> Tensor:
        with masked(network, couplings, lambda n, _: layout.split(value)):
            out: Tensor = network(X).square().mean()
            return out

    loss(mask).backward()  # type: ignore[no-untyped-call]
    assert mask.grad is not None
    step = 1e-6
    for place in np.linspace(0, layout.size - 1, 12).round().astype(int):
        one = torch.zeros(layout.size, dtype=torch.float64)
        one[place] = step
        with torch.no_grad():
            expected = float(loss(mask + one) - loss(mask - one)) / (2 * step)
        assert float(mask.grad[place]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_couplings_lie_side_by_side() -> None:
    layout = of((3, 1, 1), (2, 1, 1))
    parts = layout.split(torch.arange(5.0))
    assert {root: part.tolist() for root, part in parts.items()} == {"c0": [0, 1, 2], "c1": [3, 4]}
