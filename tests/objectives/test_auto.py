"""The recommended objective: its terms against a float64 reading, with and without source, closed-set and partial."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeprune.objectives.auto import Auto
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]
Slope = Callable[[Callable[[Array], float], Array], Array]
TASK = Task(4, 3)
STEP = Step(0, 10)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def target(strong: Tensor, index: list[int]) -> Batch:
    features = torch.zeros(len(strong), 4)
    return Batch(features, strong, None, torch.tensor(index), {"strong": (features, strong)})


def given(labels: list[int], **knobs: object) -> Auto:
    objective = Auto(TASK, Auto.Knobs(**knobs))  # type: ignore[arg-type]
    objective.pseudo = torch.tensor(labels)
    return objective


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_terms_follow_the_formula(partial: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    strong = 2 * torch.randn(4, 3, generator=generator)
    labels = [2, -1, 0, 1, -1]
    objective = given(labels, information=0.7, pseudo=1.3, partial=partial)
    terms = objective.terms(None, target(strong, [0, 1, 2, 3]), STEP)
    p = softmax(strong.double().numpy())
    entropy = -(p * np.log(p)).sum(1).mean()
    assert terms["entropy"].item() == pytest.approx(0.7 * entropy, rel=1e-5)
    mean = p.mean(0)
    if partial:
        assert "diversity" not in terms
    else:
        assert terms["diversity"].item() == pytest.approx(0.7 * (mean * np.log(mean)).sum(), rel=1e-5)
    taught = -(np.log(p[0, 2]) + np.log(p[2, 0]) + np.log(p[3, 1])) / 4  # of the second nobody is sure
    assert terms["pseudo"].item() == pytest.approx(1.3 * taught, rel=1e-5)
    assert "source" not in terms


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_follows_the_formula(partial: bool, scale: float, dtype: torch.dtype, slope: Slope) -> None:
    z, labels = np.random.default_rng(1).normal(0, scale, (4, 3)), [2, -1, 0, 1]

    def formula(logits: Array) -> float:
        p = softmax(logits)
        mean = p.mean(0)
        diversity = 0.0 if partial else 0.7 * (mean * np.log(mean)).sum()
        taught = -(np.log(p[0, 2]) + np.log(p[2, 0]) + np.log(p[3, 1])) / 4
        return float(-0.7 * (p * np.log(p)).sum(1).mean() + diversity + 1.3 * taught)

    logits = torch.tensor(z, dtype=dtype, requires_grad=True)
    objective = given(labels, information=0.7, pseudo=1.3, partial=partial)
    loss = torch.stack(list(objective.terms(None, target(logits, [0, 1, 2, 3]), STEP).values())).sum()
    (gradient,) = torch.autograd.grad(loss, [logits])
    np.testing.assert_allclose(gradient.numpy(), slope(formula, z), atol=1e-5)


def test_source_images_teach_when_they_are_there() -> None:
    logits = torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    source = Batch(torch.zeros(4, 4), logits, labels, torch.arange(4))
    terms = given([0, 1, 2, 0]).terms(source, target(logits, [0, 1, 2, 3]), STEP)
    assert terms["source"].item() == pytest.approx(
        -np.log(softmax(logits.double().numpy())[range(4), labels]).mean(), rel=1e-5
    )
    assert Auto.needs.welcome_source
    assert not Auto.needs.source


def test_only_the_sure_teach() -> None:
    strong = torch.randn(3, 3, requires_grad=True)
    terms = given([1, -1, 2]).terms(None, target(strong, [0, 1, 2]), STEP)
    (slope,) = torch.autograd.grad(terms["pseudo"], [strong])
    assert bool((slope[1] == 0).all())
    assert bool((slope[[0, 2]] != 0).any(1).all())


def test_neighbours_overrule_an_image_and_the_least_sure_teach_nothing() -> None:
    # Two clusters; the last image lies in the first but is called the second.
    generator = torch.Generator().manual_seed(0)
    features = torch.tensor([[1.0, 0, 0, 0]] * 6 + [[0, 1.0, 0, 0]] * 6 + [[1.0, 0, 0, 0]])
    features = features + 0.01 * torch.randn(features.shape, generator=generator)
    logits = torch.tensor([[4.0, 0, -9]] * 6 + [[0, 4.0, -9]] * 6 + [[0, 1.0, -9]])
    objective = Auto(TASK, Auto.Knobs(near=4, sure=1.0))
    objective.refresh(features, logits)
    assert objective.pseudo.tolist() == [0] * 6 + [1] * 6 + [0]
    objective = Auto(TASK, Auto.Knobs(near=4, sure=0.5))
    objective.refresh(features, logits)
    assert [int((objective.pseudo == k).sum()) for k in (-1, 0, 1)] == [6, 4, 3]


def test_what_the_network_saw_before_its_fine_tuning_is_asked_too() -> None:
    generator = torch.Generator().manual_seed(1)
    lost = torch.randn(16, 4, generator=generator)  # features in which the classes are mixed
    kept = torch.tensor([[1.0, 0]] * 8 + [[0, 1.0]] * 8) + 0.01 * torch.randn(16, 2, generator=generator)
    logits = torch.tensor([[2.0, 0, -9]] * 6 + [[0, 1.0, -9]] * 2 + [[0, 2.0, -9]] * 8)
    knobs = Auto.Knobs(near=5, sure=1.0)
    alone, helped = Auto(TASK, knobs), Auto(Task(4, 3, beside=kept), knobs)
    for objective in (alone, helped):
        objective.refresh(lost, logits)
    assert helped.pseudo.tolist() == [0] * 8 + [1] * 8
    assert alone.pseudo.tolist() != helped.pseudo.tolist()


def test_partial_classes_of_few_images_teach_nothing() -> None:
    features = torch.eye(4)[[0] * 12 + [1] * 3]
    logits = 5 * torch.eye(3)[[0] * 12 + [1] * 3]
    objective = Auto(TASK, Auto.Knobs(partial=True, sure=1.0, near=2, rare=4))
    objective.refresh(features, logits)
    assert objective.pseudo.tolist() == [0] * 12 + [-1] * 3


def test_view_and_statistics_are_the_users() -> None:
    assert (Auto(TASK).needs.views, Auto(TASK).needs.frozen_statistics) == (("strong",), False)
    mild = Auto(TASK, Auto.Knobs(view="weak", statistics="frozen")).needs
    assert (mild.views, mild.source_view, mild.frozen_statistics) == (("weak",), "weak", True)
    assert Auto.needs.views == ("strong",)


@pytest.mark.parametrize("settled", [None, 0.6, 0.92])
def test_a_small_shift_is_met_gently_unless_the_user_says_otherwise(settled: float | None) -> None:
    task, small = Task(4, 3, settled=settled), settled == 0.92
    found = Auto(task)
    assert (found.needs.gentle, found.needs.frozen_statistics) == (small, small)
    assert (found.needs.views, found.sure) == ((("weak",), 0.9) if small else (("strong",), 0.7))
    told = Auto(task, Auto.Knobs(view="strong", statistics="live", sure=0.5))
    assert (told.needs.views, told.needs.frozen_statistics, told.sure) == (("strong",), False, 0.5)
