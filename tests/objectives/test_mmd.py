"""The weighted discrepancy: laws for any rows and weights, and where float32 or half precision would fail."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeprune.objectives.mmd import gaussian_kernels, squared_mmd

Array = NDArray[np.float64]


def rows(seed: int, count: int, d: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (count, d)))


def paper(kernel: Array, w: Array, unbiased: bool) -> float:
    """Pair by pair; without the pairs of a row and itself when unbiased."""
    n, m = len(w), len(kernel) - len(w)
    ss = [(i, j) for i in range(n) for j in range(n) if not (unbiased and i == j)]
    tt = [(i, j) for i in range(n, n + m) for j in range(n, n + m) if not (unbiased and i == j)]
    within_s = sum(w[i] * w[j] * kernel[i, j] for i, j in ss) / sum(w[i] * w[j] for i, j in ss)
    within_t = sum(kernel[i, j] for i, j in tt) / len(tt)
    return float(within_s + within_t - 2 * (w @ kernel[:n, n:]).mean() / w.sum())


counts = st.integers(2, 6)
weights = st.lists(st.floats(0.01, 10), min_size=2, max_size=6)


@settings(max_examples=40, deadline=None)
@given(weights, counts, st.integers(0, 999), st.booleans())
def test_value_for_any_weights(w: list[float], m: int, seed: int, unbiased: bool) -> None:
    kernel = gaussian_kernels(rows(seed, len(w) + m))
    found = squared_mmd(kernel, torch.tensor(w, dtype=torch.float64), unbiased=unbiased)
    assert float(found) == pytest.approx(paper(kernel.numpy(), np.array(w), unbiased), abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(weights, counts, st.integers(0, 999), st.floats(0.01, 100))
def test_biased_is_a_norm_and_weights_have_no_scale(w: list[float], m: int, seed: int, scale: float) -> None:
    kernel, weight = gaussian_kernels(rows(seed, len(w) + m)), torch.tensor(w, dtype=torch.float64)
    found = squared_mmd(kernel, weight, unbiased=False)
    assert float(found) >= -1e-12
    torch.testing.assert_close(squared_mmd(kernel, scale * weight, unbiased=False), found)


@settings(max_examples=20, deadline=None)
@given(counts, st.integers(0, 999))
def test_a_set_is_no_way_from_itself(n: int, seed: int) -> None:
    same = rows(seed, n).repeat(2, 1)
    found = squared_mmd(gaussian_kernels(same), torch.ones(n, dtype=torch.float64), unbiased=False)
    assert abs(float(found)) < 1e-12


@pytest.mark.parametrize("rest", [1e-2, 1e-4, 1e-6, 1e-8, 1e-12])
def test_one_image_of_a_present_class_is_exact_in_float32(rest: float) -> None:
    """Class weights of a partial target leave one row almost alone; nothing may cancel."""
    x = rows(0, 40, 16)
    w = torch.full((20,), rest, dtype=torch.float64)
    w[0] = 1
    expected = paper(gaussian_kernels(x).numpy(), w.numpy(), True)
    found = squared_mmd(gaussian_kernels(x.float()), w.float(), unbiased=True)
    assert float(found) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("unbiased", [True, False])
def test_no_image_of_a_present_class_pulls_nothing(unbiased: bool) -> None:
    x = rows(0, 8).requires_grad_()
    loss = squared_mmd(gaussian_kernels(x), torch.zeros(4, dtype=torch.float64), unbiased=unbiased)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("unbiased", [True, False])
def test_autocast_changes_nothing(unbiased: bool) -> None:
    """The discrepancy is a small difference of large sums: eight bits of mantissa would drown it."""
    plain, cast = (rows(0, 64, 32).float().requires_grad_() for _ in range(2))
    first = squared_mmd(gaussian_kernels(plain), torch.ones(32), unbiased=unbiased)
    with torch.autocast("cpu", torch.bfloat16):
        second = squared_mmd(gaussian_kernels(cast), torch.ones(32), unbiased=unbiased)
    for loss in (first, second):
        loss.backward()  # type: ignore[no-untyped-call]
    assert second.dtype == torch.float32
    assert torch.equal(first, second)
    assert plain.grad is not None
    assert cast.grad is not None
    assert torch.equal(plain.grad, cast.grad)
