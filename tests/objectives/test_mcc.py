from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives.mcc import MCC, class_confusion
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def weights(z: Array, temperature: float) -> Array:
    y = softmax(z / temperature)
    w = np.array([1 + np.exp(sum(p * np.log(p) for p in row)) for row in y])
    return np.asarray(len(y) * w / w.sum())


def paper(z: Array, temperature: float, w: Array) -> float:
    y = softmax(z / temperature)
    b, k = y.shape
    total = 0.0
    for i in range(k):
        row = [sum(y[n, i] * w[n] * y[n, j] for n in range(b)) for j in range(k)]
        total += sum(row[j] for j in range(k) if j != i) / sum(row)
    return float(total / k)


def batch(logits: torch.Tensor, labels: torch.Tensor | None = None) -> Batch:
    return Batch(logits, logits, labels, torch.arange(len(logits)))


@pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])
@pytest.mark.parametrize(("count", "classes"), [(1, 2), (5, 3), (12, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(temperature: float, count: int, classes: int, dtype: torch.dtype) -> None:
    z = np.random.default_rng(count).normal(0, 3, (count, classes))
    logits = torch.tensor(z, dtype=dtype, requires_grad=True)
    loss = class_confusion(logits, temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    w, close = weights(z, temperature), 1e-7 if dtype == torch.float64 else 2e-5
    assert float(loss.detach()) == pytest.approx(paper(z, temperature, w), abs=close)
    expected = np.zeros_like(z)
    for place in np.ndindex(z.shape):  # the weights are a constant of the step
        step = np.zeros_like(z)
        step[place] = 1e-5
        expected[place] = (paper(z + step, temperature, w) - paper(z - step, temperature, w)) / 2e-5
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=close)


def test_partial_counts_classes_in_the_mean(
    slope: Callable[[Callable[[Array], float], Array], Array],
) -> None:
    """sum_j gamma_j (1 - C_jj) / sum_j gamma_j: a class that counts nothing may be as confused as it is."""
    z, gamma = np.random.default_rng(2).normal(0, 3, (9, 3)), np.array([2.0, 1.0, 0.0])
    w = weights(z, 2.5)

    def reading(z: Array) -> float:
        y = softmax(z / 2.5)
        c = y.T @ np.diag(w) @ y
        return float(sum(g * (1 - c[j, j] / c[j].sum()) for j, g in enumerate(gamma)) / gamma.sum())

    logits = torch.tensor(z, requires_grad=True)
    loss = class_confusion(logits, 2.5, torch.tensor(gamma))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(reading(z), abs=1e-7)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), slope(reading, z), atol=1e-7)
    assert float(class_confusion(logits.detach(), 2.5, torch.ones(3))) == pytest.approx(paper(z, 2.5, w))
    objective = MCC(Task(3, 3), MCC.Knobs(partial=True, ramp=0.0, weight=1.0))
    objective.gamma = torch.tensor(gamma, dtype=torch.float32)
    terms = objective.terms(batch(logits.detach(), torch.arange(9) % 3), batch(logits.detach()), Step(0, 9))
    assert float(terms["mcc"]) == pytest.approx(reading(z), abs=1e-5)


def test_sure_and_spread_predictions_are_not_confused() -> None:
    assert float(class_confusion(torch.eye(4) * 200, 2.5)) == pytest.approx(0, abs=1e-6)
    assert float(class_confusion(torch.zeros(6, 4), 2.5)) == pytest.approx(0.75)


def test_a_class_that_nobody_predicts_is_no_nan() -> None:
    logits = torch.tensor([[3000.0, 0, 0], [0, 3000.0, 0]], requires_grad=True)
    loss = class_confusion(logits, 2.5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_terms_ramp_up() -> None:
    torch.manual_seed(0)
    source, target = batch(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])), batch(torch.randn(6, 3))
    objective = MCC(Task(3, 3), MCC.Knobs(temperature=2.0, weight=3.0, ramp=0.5))
    full = float(class_confusion(target.logits, 2.0))
    for number, share in ((0, 0.0), (25, 0.5), (50, 1.0), (100, 1.0)):
        terms = objective.terms(source, target, Step(number, 101))
        assert set(terms) == {"source", "mcc"}
        assert float(terms["mcc"]) == pytest.approx(3 * share * full)
    assert float(MCC(Task(3, 3), MCC.Knobs(ramp=0.0)).terms(source, target, Step(0, 9))["mcc"]) > 0


def test_mixed_precision_does_not_reach_the_matrix() -> None:
    def loss_and_slope(on: bool) -> tuple[torch.Tensor, torch.Tensor]:
        z = 3 * torch.randn(64, 31, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            loss = class_confusion(z.requires_grad_(), 2.5)
        return loss.detach(), torch.autograd.grad(loss, [z])[0]

    plain, mixed = loss_and_slope(False), loss_and_slope(True)
    assert mixed[0].dtype == torch.float32
    for one, other in zip(mixed, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_half_precision_logits_are_raised() -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    objective = MCC(Task(5, 5), MCC.Knobs(ramp=0.0))
    found = objective.terms(batch(logits, torch.zeros(8, dtype=torch.int64)), batch(logits), Step(0, 1))[
        "mcc"
    ]
    z = logits.double().numpy()
    assert float(found) == pytest.approx(paper(z, 2.5, weights(z, 2.5)), abs=1e-5)
