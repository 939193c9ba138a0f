import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives.source import Source, labelled
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]


def paper(z: Array, labels: NDArray[np.int64], smoothing: float) -> float:
    total = 0.0
    for row, label in zip(z, labels, strict=True):
        logs = row - math.log(sum(math.exp(v) for v in row))
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        total -= float(target @ logs)
    return total / len(z)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("count", "classes"), [(1, 2), (8, 5), (20, 12)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient(smoothing: float, count: int, classes: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(count)
    logits = torch.tensor(random.normal(0, 2, (count, classes)), dtype=dtype, requires_grad=True)
    z, labels = logits.detach().double().numpy(), random.integers(0, classes, count)
    batch = Batch(logits, logits, torch.tensor(labels), torch.arange(count))
    loss = Source(Task(3, classes), Source.Knobs(smoothing)).terms(batch, None, Step(0, 1))["source"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(paper(z, labels, smoothing), rel=1e-5)
    expected = np.zeros_like(z)
    for place in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[place] = 1e-5
        expected[place] = (paper(z + step, labels, smoothing) - paper(z - step, labels, smoothing)) / 2e-5
    assert logits.grad is not None
    close = 4e-3 if dtype == torch.bfloat16 else 1e-6
    np.testing.assert_allclose(logits.grad.double().numpy(), expected, atol=close)


def test_no_source_no_labels() -> None:
    z = torch.zeros(2, 3)
    for batch in (None, Batch(z, z, None, torch.arange(2))):
        with pytest.raises(ValueError, match=r"a labelled source batch is expected; .* must say source=True"):
            labelled(batch)
