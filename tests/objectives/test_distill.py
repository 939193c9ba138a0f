import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives.distill import Distill, softened_kl
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def paper(teacher: Array, student: Array, t: float) -> float:
    p, q = softmax(teacher / t), softmax(student / t)
    total = sum(p[i, k] * math.log(p[i, k] / q[i, k]) for i, k in np.ndindex(p.shape))
    return float(t * t * total / len(p))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize(("count", "classes"), [(1, 2), (7, 3), (16, 20)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(temperature: float, count: int, classes: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(count)
    teacher, student = random.normal(0, 2, (2, count, classes))
    s = torch.tensor(student, dtype=dtype, requires_grad=True)
    loss = softened_kl(torch.tensor(teacher, dtype=dtype), s, temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    close = 1e-9 if dtype == torch.float64 else 1e-4
    assert float(loss.detach()) == pytest.approx(paper(teacher, student, temperature), rel=close)
    expected = np.zeros_like(student)
    for place in np.ndindex(student.shape):
        step = np.zeros_like(student)
        step[place] = 1e-5
        change = paper(teacher, student + step, temperature) - paper(teacher, student - step, temperature)
        expected[place] = change / 2e-5
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), expected, atol=1e-7 if dtype == torch.float64 else 1e-5)


def test_terms_need_no_labels_and_vanish_when_both_agree() -> None:
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    batch = Batch(z, z, None, torch.arange(5), teacher=z + 4)
    assert Distill.needs.teacher
    assert not Distill.needs.source
    assert float(Distill(Task(3, 3)).terms(None, batch, Step(0, 1))["distill"]) == pytest.approx(0, abs=1e-6)
