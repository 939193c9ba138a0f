from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives.bnm import BNM, nuclear_norm
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]
Slope = Callable[[Callable[[Array], float], Array], Array]


def paper(z: Array) -> float:
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return float(np.linalg.svd(p)[1].sum() / len(z))


@pytest.mark.parametrize(("count", "classes"), [(1, 3), (3, 7), (8, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(count: int, classes: int, dtype: torch.dtype, slope: Slope) -> None:
    z = np.random.default_rng(count).normal(0, 2, (count, classes))
    logits = torch.tensor(z, dtype=dtype, requires_grad=True)
    loss = nuclear_norm(logits)
    loss.backward()  # type: ignore[no-untyped-call]
    close = 1e-7 if dtype == torch.float64 else 2e-5
    assert float(loss.detach()) == pytest.approx(paper(z), abs=close)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), slope(paper, z), atol=close)


def test_partial_counts_columns_by_class(slope: Slope) -> None:
    """P diag(w), w relative to the largest: what is said of a class that counts nothing changes nothing."""
    z, gamma = np.random.default_rng(1).normal(0, 2, (8, 4)), np.array([2.0, 1.0, 1.0, 0.0])

    def reading(z: Array) -> float:
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return float(np.linalg.svd(p @ np.diag(gamma / 2))[1].sum() / len(z))

    logits = torch.tensor(z, requires_grad=True)
    loss = nuclear_norm(logits, torch.tensor(gamma))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(reading(z), abs=1e-7)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), slope(reading, z), atol=1e-7)
    objective = BNM(Task(4, 4), BNM.Knobs(partial=True))
    objective.gamma = torch.tensor(gamma, dtype=torch.float32)
    target = Batch(logits.detach(), logits.detach(), None, torch.arange(8))
    source = Batch(logits.detach(), logits.detach(), torch.arange(8) % 4, torch.arange(8))
    assert float(objective.terms(source, target, Step(0, 9))["bnm"]) == pytest.approx(-reading(z), abs=1e-5)


def test_sure_and_diverse_is_the_most() -> None:
    sure = torch.eye(3).repeat(4, 1) * 100
    assert float(nuclear_norm(sure)) == pytest.approx(np.sqrt(3 / 12))
    assert float(nuclear_norm(sure)) > float(nuclear_norm(sure[:1].repeat(12, 1)))
    assert float(nuclear_norm(sure)) > float(nuclear_norm(sure * 0.01))


def test_terms() -> None:
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    source, target = (Batch(z, z, torch.arange(6) % 3, torch.arange(6)) for _ in range(2))
    terms = BNM(Task(3, 3), BNM.Knobs(weight=3.0)).terms(source, target, Step(0, 1))
    assert set(terms) == {"source", "bnm"}
    assert float(terms["bnm"]) == pytest.approx(-3 * paper(z.double().numpy()), abs=1e-5)


def test_logits_that_are_no_numbers_are_no_traceback() -> None:
    """The alarm of the loop is to see them."""
    logits = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    assert nuclear_norm(logits).isnan()
    assert nuclear_norm(torch.tensor([[1.0, float("inf")], [0.0, 1.0]])).isnan()
