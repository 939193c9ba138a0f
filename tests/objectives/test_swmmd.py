from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.commands.knobs import parse
from edgeprune.errors import UsageError
from edgeprune.objectives.mmd import WIDTHS
from edgeprune.objectives.swmmd import SWMMD
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]
Slope = Callable[[Callable[[Array], float], Array], Array]
N, M, D, K = 5, 4, 3, 3
LABELS = np.array([0, 1, 2, 0, 1])


def soft(z: Array) -> Array:
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return np.asarray(0.9 / K + 0.1 * p.mean(0))


def paper(f: Array, w: Array, mean: float) -> float:
    """a' K_ss a - (2 / m) a' K_st 1 + (1 / m^2) 1' K_tt 1."""
    a = w[LABELS] / w[LABELS].sum()

    def k(i: int, j: int) -> float:
        return float(sum(np.exp(-((f[i] - f[j]) ** 2).sum() / (2 * s * mean)) for s in WIDTHS))

    t = range(N, N + M)
    ss = sum(a[i] * a[j] * k(i, j) for i in range(N) for j in range(N))
    st = sum(a[i] * k(i, j) for i in range(N) for j in t) / M
    return float(ss - 2 * st + sum(k(i, j) for i in t for j in t) / M**2)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(through: bool, dtype: torch.dtype, slope: Slope) -> None:
    random = np.random.default_rng(0)
    f, z = random.normal(0, 1, (N + M, D)), random.normal(0, 3, (M, K))
    features = torch.tensor(f, dtype=dtype, requires_grad=True)
    logits = torch.tensor(z, dtype=dtype, requires_grad=True)
    source = Batch(features[:N], torch.zeros(N, K), torch.from_numpy(LABELS), torch.arange(N))
    target = Batch(features[N:], logits, None, torch.arange(M))
    objective = SWMMD(Task(D, K), SWMMD.Knobs(weight=1.0, through=through))
    terms = objective.terms(source, target, Step(1000, 1001))
    mean = float(np.mean([((x - y) ** 2).sum() for x in f for y in f]))
    ramp = 2 / (1 + np.exp(-10)) - 1
    assert float(terms["swmmd"].detach()) == pytest.approx(ramp * paper(f, soft(z), mean), abs=1e-5)
    terms["swmmd"].backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    expected = ramp * slope(lambda u: paper(u, soft(z), mean), f)
    np.testing.assert_allclose(features.grad.numpy(), expected, atol=1e-5)
    if through:
        assert logits.grad is not None
        expected = ramp * slope(lambda u: paper(f, soft(u), mean), z)
        np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-5)
    else:
        assert logits.grad is None
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert float(terms["entropy"].detach()) == pytest.approx(-0.1 * (p * np.log(p)).sum(1).mean(), abs=1e-5)
    np.testing.assert_allclose(objective.average.numpy(), soft(z), atol=1e-6)


def test_absent_classes_fade_from_the_source() -> None:
    objective = SWMMD(Task(2, 2), SWMMD.Knobs(momentum=0.0))
    z = torch.tensor(
        [[0.0, 4.0], [0.0, 0.0]]
    )  # the second source image is wrong, and of a class that is absent
    source = Batch(
        torch.randn(2, 2, requires_grad=True),
        torch.tensor([[4.0, 0.0], [4.0, 0.0]]),
        torch.tensor([0, 1]),
        z.argmax(1),
    )
    target = Batch(torch.randn(2, 2), torch.tensor([[60.0, 0], [60.0, 0]]), None, torch.arange(2))
    terms = objective.terms(source, target, Step(8, 9))
    assert float(terms["source"]) == pytest.approx(np.log(1 + np.exp(-4)), rel=1e-4)
    (slope,) = torch.autograd.grad(terms["swmmd"], [source.features])
    assert float(slope[0].norm()) > 0.01
    assert float(slope[1].norm()) < 1e-6  # the domains are not brought together by what is not there


def test_partial_is_all_there_is() -> None:
    made = SWMMD(Task(2, 2), SWMMD.Knobs(**parse(SWMMD.Knobs, ["partial=true"], "swmmd")))
    assert made.partial
    assert made.knobs == SWMMD.Knobs()
    with pytest.raises(
        UsageError, match=r"partial=false: swmmd weighs classes .* dan is its like for a target with all"
    ):
        SWMMD.Knobs(**parse(SWMMD.Knobs, ["partial=false"], "swmmd"))
