"""Label propagation: against the closed form in float64, and what it does to clusters, masses and odd inputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeprune.objectives.propagation import propagate, settled, surest


def reading(blocks: list[np.ndarray], p: np.ndarray, near: int, alpha: float, level: bool) -> np.ndarray:
    """The papers' words, dense and in float64: (1 - alpha) (I - alpha S)^-1 p."""
    parts = []
    for block in blocks:
        unit = block / np.linalg.norm(block, axis=1, keepdims=True)
        unit = unit - unit.mean(0)
        parts.append(unit / np.linalg.norm(unit, axis=1, keepdims=True))
    rows = np.concatenate(parts, 1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -np.inf)
    weight = np.zeros_like(cosine)
    for i, row in enumerate(cosine):
        for j in np.argsort(-row)[:near]:
            weight[i, j] = max(row[j], 0) ** 3
    weight = weight + weight.T
    scale = 1 / np.sqrt(weight.sum(1))
    flow = scale[:, None] * weight * scale
    q = (1 - alpha) * np.linalg.solve(np.eye(len(p)) - alpha * flow, p)
    q /= q.sum(1, keepdims=True)
    if level:
        q *= np.sqrt(p.sum(0)) / q.sum(0)
    return np.asarray(q / q.sum(1, keepdims=True))


@pytest.mark.parametrize("level", [True, False])
@pytest.mark.parametrize("widths", [(6,), (6, 3)])
@pytest.mark.parametrize("alpha", [0.5, 0.95])
def test_it_is_the_closed_form(level: bool, widths: tuple[int, ...], alpha: float) -> None:
    generator = torch.Generator().manual_seed(len(widths))
    features = [torch.randn(40, w, generator=generator) for w in widths]
    p = torch.randn(40, 4, generator=generator).softmax(1)
    found = propagate(features, p, near=5, alpha=alpha, level=level)
    want = reading([f.double().numpy() for f in features], p.double().numpy(), 5, alpha, level)
    np.testing.assert_allclose(found.numpy(), want, atol=2e-4)


@given(st.integers(2, 25), st.integers(2, 6), st.integers(1, 8), st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_always_probabilities(count: int, classes: int, width: int, near: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator)
    features[0] = 0  # a dead image
    p = (9 * torch.randn(count, classes, generator=generator)).softmax(1)
    found = propagate([features], p, near=near)
    assert bool(torch.isfinite(found).all())
    assert torch.allclose(found.sum(1), torch.ones(count), atol=1e-4)
    assert bool((found >= 0).all())
    assert found.shape == p.shape


def test_equal_images_and_few_images() -> None:
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    assert bool(torch.isfinite(propagate([torch.ones(3, 5)], p)).all())
    assert propagate([torch.eye(3)[:2]], p[:2]).shape == (2, 2)
    assert torch.equal(propagate([torch.eye(3)[:1]], p[:1]), p[:1])
    assert torch.equal(propagate([torch.full((3, 5), float("nan"))], p), p)
    assert settled(torch.eye(3)[:1], p[:1]) == 0
    assert settled(torch.full((3, 5), float("inf")), p) == 0


def test_the_surest_of_each_class() -> None:
    p = torch.tensor([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.7, 0.3, 0], [0.8, 0.2, 0], [0.4, 0.6, 0]])
    assert surest(p, 0.5).tolist() == [0, -1, -1, 0, 1]  # the only one of a class always teaches
    assert surest(p, 1.0).tolist() == [0, 0, 0, 0, 1]


def test_settled_is_one_where_neighbours_are_called_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(90) % 3
    features = 4 * torch.eye(3)[label] + 0.2 * torch.randn(90, 3, generator=generator)
    assert settled(features, 9 * torch.eye(3)[label]) == 1
    shuffled = 9 * torch.eye(3)[label[torch.randperm(90, generator=generator)]]
    assert settled(features, shuffled) < 0.5
    assert settled(features, 9 * torch.eye(3)[torch.zeros(90, dtype=torch.int64)]) == 0


def _kappa(one: Tensor, other: Tensor, classes: int) -> float:
    agreed = (one == other).double().mean()
    chance = sum((one == k).double().mean() * (other == k).double().mean() for k in range(classes))
    return float((agreed - chance) / (1 - chance))


def test_settled_is_the_smaller_kappa() -> None:
    """Of what flowed, and of what the nearest ten say without the image itself."""
    generator = torch.Generator().manual_seed(1)
    features, logits = torch.randn(60, 4, generator=generator), torch.randn(60, 3, generator=generator)
    p, own = logits.softmax(1), logits.argmax(1)
    unit = torch.nn.functional.normalize(features, dim=1)
    unit = torch.nn.functional.normalize(unit - unit.mean(0), dim=1).double()
    w = (unit @ unit.T).fill_diagonal_(-1)
    near = torch.zeros_like(w).scatter_(1, w.topk(10, 1).indices, 1.0) * w.clamp_min(0) ** 3
    both = near + near.T
    scale = both.sum(1).rsqrt()
    asked = (scale[:, None] * both * scale @ p.double()).argmax(1)
    flowed = propagate([features], p, level=False).argmax(1)
    expected = min(_kappa(own, asked, 3), _kappa(own, flowed, 3))
    assert settled(features, logits) == pytest.approx(expected)


def test_settled_asks_neighbours_where_classes_are_many_or_few() -> None:
    """Two answers of five are wrong; with few images a class an image's own answer outweighs what flows to it."""
    generator = torch.Generator().manual_seed(2)
    label = torch.arange(600) % 50
    features = 4 * torch.eye(50)[label] + 0.2 * torch.randn(600, 50, generator=generator)
    said = torch.where(
        torch.rand(600, generator=generator) < 0.4, torch.randint(50, (600,), generator=generator), label
    )
    assert settled(features, 9 * torch.eye(50)[label]) > 0.9
    assert settled(features, 9 * torch.eye(50)[said]) < 0.7
    assert settled(features[:300], 9 * torch.eye(50)[said[:300]]) == 1, "six images a class say nothing"
