import math

import numpy as np
import pytest
import torch

from edgeprune.objectives.dann import DANN, reverse_gradient, strength_at
from edgeprune.waist import Batch, Step, Task


def batches(dtype: torch.dtype) -> tuple[Batch, Batch]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for count in (5, 3):
        features = torch.randn(count, 4, generator=generator).to(dtype).requires_grad_()
        labels = torch.arange(count) % 3
        made.append(Batch(features, torch.zeros(count, 3), labels, torch.arange(count)))
    return made[0], made[1]


def test_reversal() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    y = reverse_gradient(x, 0.3)
    assert torch.equal(x, y)
    y.square().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, -0.3 * 2 * x.detach())


def test_strength_goes_from_nothing_to_one() -> None:
    assert strength_at(Step(0, 11)) == 0
    assert strength_at(Step(5, 11)) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert 0.999 < strength_at(Step(10, 11)) < 1


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("number", [0, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(partial: bool, number: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    source, target = batches(dtype)
    objective = DANN(Task(4, 3), DANN.Knobs(weight=0.7, hidden=6, partial=partial))
    objective.gamma = torch.tensor([2.0, 0.7, 0.3])
    loss = objective.terms(source, target, Step(number, 11))["dann"]
    loss.backward()  # type: ignore[no-untyped-call]
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in objective.discriminator.parameters())
    f = torch.cat([source.features, target.features]).detach().double().numpy()
    w = np.ones(8)
    if partial:
        w[:5] = np.array([2.0, 0.7, 0.3])[np.arange(5) % 3]
        w[:5] /= w[:5].mean()
    total, slopes = 0.0, np.zeros_like(f)
    for i, x in enumerate(f):
        h = w1 @ x + b1
        q = 1 / (1 + math.exp(-(w2 @ np.maximum(h, 0) + b2).item()))
        domain = i < 5
        total -= w[i] * (math.log(q) if domain else math.log(1 - q)) / 8
        slopes[i] = w[i] * (q - domain) / 8 * (w2[0] * (h > 0)) @ w1
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    assert source.features.grad is not None
    assert target.features.grad is not None
    found = torch.cat([source.features.grad, target.features.grad]).double().numpy()
    np.testing.assert_allclose(found, -0.7 * strength_at(Step(number, 11)) * slopes, atol=1e-6)
