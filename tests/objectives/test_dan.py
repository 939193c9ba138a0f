"""DAN and the discrepancy it shares with JAN and SWMMD."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives.dan import DAN
from edgeprune.objectives.mmd import WIDTHS, gaussian_kernels, squared_distances, squared_mmd
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]
Slope = Callable[[Callable[[Array], float], Array], Array]


def mean_distance(rows: Array) -> float:
    return float(np.mean([((x - y) ** 2).sum() for x in rows for y in rows]))


def k(x: Array, y: Array, mean: float) -> float:
    return float(sum(np.exp(-((x - y) ** 2).sum() / (2 * a * mean)) for a in WIDTHS))


def paper(rows: Array, n: int, mean: float) -> float:
    """The U statistic, pair by pair."""
    s, t = rows[:n], rows[n:]
    m = len(t)
    within_s = sum(k(s[i], s[j], mean) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_t = sum(k(t[i], t[j], mean) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_s + within_t - 2 * sum(k(x, y, mean) for x in s for y in t) / (n * m)


def batches(rows: torch.Tensor, n: int, classes: int = 3) -> tuple[Batch, Batch]:
    z = torch.zeros(len(rows), classes)
    labels = torch.arange(n) % classes
    source = Batch(rows[:n], z[:n], labels, torch.arange(n))
    return source, Batch(rows[n:], z[n:], None, torch.arange(len(rows) - n))


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (5, 5, 3), (4, 7, 6)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(n: int, m: int, d: int, scale: float, dtype: torch.dtype, slope: Slope) -> None:
    x = scale * np.random.default_rng(n).normal(0, 1, (n + m, d))
    x[n:] += scale
    rows = torch.tensor(x, dtype=dtype, requires_grad=True)
    loss = squared_mmd(gaussian_kernels(rows), torch.ones(n, dtype=dtype), unbiased=True)
    loss.backward()  # type: ignore[no-untyped-call]
    mean, close = mean_distance(x), 1e-8 if dtype == torch.float64 else 1e-5
    assert float(loss.detach()) == pytest.approx(paper(x, n, mean), abs=close)
    assert rows.grad is not None
    unit = x / scale  # the loss does not know the scale; its gradient does
    expected = slope(lambda u: paper(u * scale, n, mean), unit) / scale
    np.testing.assert_allclose(scale * rows.grad.numpy(), scale * expected, atol=100 * close)


def test_weights_are_copies() -> None:
    """A source row of weight two is as good as that row twice, in the biased form."""
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twice = torch.cat([rows[:1], rows])
    kernel = torch.exp(-squared_distances(rows))
    weighted = squared_mmd(kernel, torch.tensor([2.0, 1, 1], dtype=torch.float64), unbiased=False)
    copied = squared_mmd(torch.exp(-squared_distances(twice)), torch.ones(4).double(), unbiased=False)
    torch.testing.assert_close(weighted, copied)


def test_one_image_and_equal_images_are_no_nan() -> None:
    for rows in (torch.ones(8, 3), torch.ones(2, 3)):
        rows.requires_grad_()
        loss = squared_mmd(gaussian_kernels(rows), torch.ones(len(rows) // 2), unbiased=True)
        loss.backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(loss)
        assert rows.grad is not None
        assert torch.isfinite(rows.grad).all()


def test_terms() -> None:
    rows = torch.randn(12, 4, generator=torch.Generator().manual_seed(3))
    source, target = batches(rows, 6)
    terms = DAN(Task(4, 3), DAN.Knobs(weight=2.5)).terms(source, target, Step(0, 9))
    x = rows.double().numpy()
    assert set(terms) == {"source", "dan"}
    assert float(terms["dan"]) == pytest.approx(2.5 * paper(x, 6, mean_distance(x)), abs=1e-5)
    assert float(terms["source"]) == pytest.approx(np.log(3))


def test_partial_weighs_the_source_rows() -> None:
    rows = torch.randn(12, 4, generator=torch.Generator().manual_seed(3))
    source, target = batches(rows, 6)
    objective = DAN(Task(4, 3), DAN.Knobs(partial=True))
    assert objective.needs.refresh
    objective.refresh(rows, torch.tensor([[50.0, 0, 0], [0, 50.0, 0]]))  # the third class is absent
    absent, present = torch.tensor([2, 5]), torch.tensor([0, 1, 3, 4])
    found = objective.terms(source, target, Step(0, 9))["dan"]
    kernel = gaussian_kernels(rows)
    keep = torch.cat([present, torch.arange(6, 12)])
    torch.testing.assert_close(
        found, squared_mmd(kernel[keep][:, keep], torch.ones(len(present)), unbiased=True)
    )
    assert source.labels is not None
    assert set(source.labels[absent].tolist()) == {2}
