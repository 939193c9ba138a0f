import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives.fixmatch import FixMatch, pseudo_label_loss
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]


def log_softmax(z: Array) -> Array:
    z = z - z.max(1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(1, keepdims=True)))


def paper(weak: Array, strong: Array, threshold: float) -> float:
    total = 0.0
    for p, q in zip(np.exp(log_softmax(weak)), log_softmax(strong), strict=True):
        if p.max() >= threshold:
            total -= q[p.argmax()]
    return total / len(weak)


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.9, 1.1])
@pytest.mark.parametrize(("count", "classes"), [(1, 2), (9, 4), (32, 10)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(threshold: float, count: int, classes: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(count)
    weak, strong = random.normal(0, 3, (count, classes)), random.normal(0, 2, (count, classes))
    w, s = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in (weak, strong))
    loss = pseudo_label_loss(w, s, threshold)
    loss.backward()  # type: ignore[no-untyped-call]
    close = 1e-7 if dtype == torch.float64 else 1e-5
    assert float(loss.detach()) == pytest.approx(paper(weak, strong, threshold), abs=close)
    expected = np.zeros_like(strong)
    for place in np.ndindex(strong.shape):
        step = np.zeros_like(strong)
        step[place] = 1e-5
        expected[place] = paper(weak, strong + step, threshold) - paper(weak, strong - step, threshold)
    assert s.grad is not None
    assert w.grad is None
    np.testing.assert_allclose(s.grad.numpy(), expected / 2e-5, atol=close)


def test_terms_read_the_two_views() -> None:
    weak, strong = torch.tensor([[9.0, 0.0], [0.1, 0.0]]), torch.tensor([[1.0, 2.0], [5.0, 0.0]])
    views = {"weak": (weak, weak), "strong": (strong, strong)}
    target = Batch(weak, weak, None, torch.arange(2), views)
    source = Batch(weak, weak, torch.tensor([0, 1]), torch.arange(2))
    objective = FixMatch(Task(2, 2), FixMatch.Knobs(threshold=0.9, weight=4.0))
    assert objective.needs.views == ("weak", "strong")
    terms = objective.terms(source, target, Step(0, 1))
    expected = 4 * paper(weak.double().numpy(), strong.double().numpy(), 0.9)
    assert float(terms["consistency"]) == pytest.approx(expected)
    assert float(terms["source"]) == pytest.approx(-float(weak.log_softmax(1)[[0, 1], [0, 1]].mean()))
