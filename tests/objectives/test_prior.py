import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeprune.objectives.prior import label_prior, plentiful

Array = NDArray[np.float64]


def paper(p: Array, rounds: int) -> Array:
    """The EM of Saerens et al. with a flat prior of the source: posteriors corrected, and their mean."""
    prior = np.full(p.shape[1], 1 / p.shape[1])
    for _ in range(rounds):
        corrected = np.array([[prior[c] / (1 / len(prior)) * row[c] for c in range(len(prior))] for row in p])
        prior = (corrected / corrected.sum(1, keepdims=True)).mean(0)
    return prior


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("count", "classes"), [(1, 2), (40, 3), (200, 7)])
def test_against_the_paper(count: int, classes: int, dtype: torch.dtype) -> None:
    z = np.random.default_rng(count).normal(0, 3, (count, classes)).astype(np.float16)
    expected = paper(softmax(z.astype(np.float64)), 100)
    np.testing.assert_allclose(label_prior(torch.tensor(z, dtype=dtype)).numpy(), expected, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=3, max_size=3), st.integers(0, 9))
def test_it_is_the_prior_where_answers_are_right_but_for_it(shares: list[int], seed: int) -> None:
    """Gaussian classes, whose posteriors under a flat prior are known; one of four has no image."""
    random = np.random.default_rng(seed)
    centres = np.eye(4) * 3
    prior = np.array([*shares, 0]) / sum(shares)
    images = centres[random.choice(4, 3000, p=prior)] + random.normal(0, 1, (3000, 4))
    logits = -np.square(images[:, None] - centres).sum(2) / 2
    found = label_prior(torch.tensor(logits)).numpy()
    assert found.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(found, prior, atol=0.05)
    assert found[3] < softmax(logits).mean(0)[3] + 1e-6


def test_plentiful_is_all_where_nothing_is() -> None:
    logits = torch.tensor([[4.0, 0, 0], [0, 4.0, 0]]).repeat(20, 1)
    assert plentiful(logits, 10).tolist() == [True, True, False]
    assert plentiful(logits, 30).tolist() == [True, True, True]
