import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.select import Choice, choose, soft_neighbourhood_density, validators

Array = NDArray[np.float64]


def entropy(p: Array) -> float:
    return float(-sum(q * math.log(q) for q in p.tolist() if q > 0))


def density(p: Array) -> float:
    v = p / np.linalg.norm(p, axis=1, keepdims=True)
    found = []
    for i in range(len(v)):
        near = np.array([math.exp(v[i] @ v[j] / 0.05) for j in range(len(v)) if j != i])
        found.append(entropy(near / near.sum()))
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("count", "classes", "scale"), [(3, 2, 1.0), (40, 5, 3.0), (6, 30, 2.0), (100, 3, 9.0)]
)
def test_formulas(count: int, classes: int, scale: float) -> None:
    z = np.random.default_rng(count).normal(0, scale, (count, classes)).astype(np.float32)
    p = np.exp(z.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    found = validators(torch.zeros(count, 4), torch.tensor(z))
    conditional = float(np.mean([entropy(row) for row in p]))
    singular = np.sqrt(np.linalg.eigvalsh(p @ p.T if count < classes else p.T @ p).clip(0))
    shares = np.bincount(p.argmax(1), minlength=classes) / count
    assert found["information"] == pytest.approx(entropy(p.mean(0)) - conditional, abs=1e-8)
    assert found["entropy"] == pytest.approx(-conditional, abs=1e-8)
    assert found["nuclear"] == pytest.approx(
        singular.sum() / math.sqrt(count * min(count, classes)), abs=1e-6
    )
    assert found["snd"] == pytest.approx(density(p), abs=1e-7)
    assert found["histogram"] == pytest.approx(entropy(shares) / math.log(classes), abs=1e-9)


def test_density_takes_evenly_spaced_rows_and_needs_three() -> None:
    p = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
    rows = [round(i * 49 / 9) for i in range(10)]
    assert soft_neighbourhood_density(p, most=10) == pytest.approx(density(p[rows].numpy()))
    assert soft_neighbourhood_density(p[:2]) == 0


def test_sure_and_balanced_is_best_of_all() -> None:
    features = torch.zeros(12, 2)
    good = validators(features, torch.eye(4).repeat(3, 1) * 50)
    assert good["information"] == pytest.approx(math.log(4))
    assert good["nuclear"] == pytest.approx(1)
    assert good["histogram"] == pytest.approx(1)
    one = validators(features, torch.tensor([50.0, 0, 0, 0]).repeat(12, 1))
    assert one["information"] == pytest.approx(0, abs=1e-9)
    assert one["histogram"] == 0
    assert one["entropy"] == pytest.approx(good["entropy"], abs=1e-9)  # why it does not choose


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_score_worst(bad: float) -> None:
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    fine = validators(torch.zeros(9, 2), logits)
    logits[4, 1] = bad
    worst = validators(torch.zeros(9, 2), logits)
    assert all(math.isfinite(v) for v in worst.values())
    assert all(worst[name] < fine[name] for name in fine)


def test_one_class_is_no_division_by_zero() -> None:
    assert validators(torch.zeros(4, 2), torch.zeros(4, 1))["histogram"] == 0


def curve(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"information": i, "histogram": h, "snd": -i} for i, h in pairs]


def test_choose() -> None:
    assert choose(curve((0.1, 0.9), (0.5, 0.9), (0.3, 0.8))) == Choice(1, False)
    assert choose(curve((0.1, 0.9), (0.5, 0.9), (0.3, 0.8)), "snd") == Choice(0, False)
    assert choose(curve((0.5, 0.9), (0.5, 0.9))) == Choice(1, False)  # a tie goes to the later
    assert choose(curve((0.2, 0.5))) == Choice(0, False)


def test_choose_passes_over_a_collapse() -> None:
    assert choose(curve((0.1, 0.9), (0.2, 0.8), (0.9, 0.53))) == Choice(1, True)
    assert choose(curve((0.1, 0.9), (0.2, 0.8), (0.9, 0.55))) == Choice(2, False)  # 0.6 of 0.9 is the line
    assert choose(curve((0.1, 0.9), (0.9, 0.1), (0.3, 0.9))) == Choice(2, False)  # it came back
    assert choose(curve((0.1, 0.0), (0.2, 0.0))) == Choice(1, False)  # nothing left to lose
