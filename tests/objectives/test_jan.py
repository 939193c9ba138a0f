from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives.jan import JAN
from edgeprune.objectives.mmd import WIDTHS
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]
Slope = Callable[[Callable[[Array], float], Array], Array]


def paper(f: Array, z: Array, n: int, mean: float) -> float:
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)

    def k(i: int, j: int) -> float:
        first = sum(np.exp(-((f[i] - f[j]) ** 2).sum() / (2 * a * mean)) for a in WIDTHS)
        return float(first * np.exp(-((p[i] - p[j]) ** 2).sum() / (2 * 0.92**2)))

    s, t = range(n), range(n, len(f))
    within = [
        sum(k(i, j) for i in part for j in part if i != j) / (len(part) * (len(part) - 1)) for part in (s, t)
    ]
    return sum(within) - 2 * sum(k(i, j) for i in s for j in t) / (len(s) * len(t))


@pytest.mark.parametrize(("n", "m", "d", "classes"), [(2, 2, 2, 2), (4, 6, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(n: int, m: int, d: int, classes: int, dtype: torch.dtype, slope: Slope) -> None:
    random = np.random.default_rng(n)
    f, z = random.normal(0, 1, (n + m, d)), random.normal(0, 2, (n + m, classes))
    features, logits = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in (f, z))
    source = Batch(features[:n], logits[:n], torch.arange(n) % classes, torch.arange(n))
    target = Batch(features[n:], logits[n:], None, torch.arange(m))
    loss = JAN(Task(d, classes), JAN.Knobs(weight=2.0)).terms(source, target, Step(0, 9))["jan"]
    loss.backward()  # type: ignore[no-untyped-call]
    mean = float(np.mean([((x - y) ** 2).sum() for x in f for y in f]))
    assert float(loss.detach()) == pytest.approx(2 * paper(f, z, n, mean), abs=2e-5)
    assert features.grad is not None
    assert logits.grad is not None
    expected = 2 * slope(lambda u: paper(u, z, n, mean), f)
    np.testing.assert_allclose(features.grad.numpy(), expected, atol=2e-5)
    expected = 2 * slope(lambda u: paper(f, u, n, mean), z)
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=2e-5)


def test_partial_weighs_the_source_rows() -> None:
    f = torch.randn(12, 4, generator=torch.Generator().manual_seed(3))
    z = torch.randn(12, 3, generator=torch.Generator().manual_seed(4))
    keep = torch.tensor([0, 1, 3, 4])
    seen = torch.tensor([[50.0, 0, 0], [0, 50.0, 0]])  # the third class is absent
    target = Batch(f[6:], z[6:], None, torch.arange(6))
    found = []
    for chosen in (torch.arange(6), keep):
        objective = JAN(Task(4, 3), JAN.Knobs(partial=True))
        objective.refresh(f, seen)
        source = Batch(f[:6][chosen], z[:6][chosen], chosen % 3, chosen)
        found.append(objective.terms(source, target, Step(0, 9)))
    torch.testing.assert_close(found[0]["source"], found[1]["source"])
    x, y = f.double().numpy(), z.double().numpy()
    mean = float(np.mean([((a - b) ** 2).sum() for a in x for b in x]))  # the widths are of all the rows
    rows = [*keep.tolist(), *range(6, 12)]
    assert float(found[0]["jan"]) == pytest.approx(paper(x[rows], y[rows], 4, mean), abs=1e-5)
