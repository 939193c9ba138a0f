"""The recommended objective: its terms against a float64 reading, with and without source, closed-set and partial."""

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeprune.objectives.auto import Auto
from edgeprune.waist import Batch, Step, Task

TASK = Task(4, 3)
STEP = Step(0, 10)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def target(main: Tensor, strong: Tensor, index: list[int]) -> Batch:
    features = torch.zeros(len(main), 4)
    views = {"train": (features, main), "strong": (features, strong)}
    return Batch(features, main, None, torch.tensor(index), views)


def given(pseudo: list[int], **knobs: object) -> Auto:
    objective = Auto(TASK, Auto.Knobs(**knobs))  # type: ignore[arg-type]
    objective.pseudo = torch.tensor(pseudo)
    return objective


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_terms_follow_the_formula(partial: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    main, strong = torch.randn(4, 3, generator=generator), 2 * torch.randn(4, 3, generator=generator)
    pseudo = [2, -1, 0, 1, -1]
    objective = given(pseudo, information=0.7, consistency=1.3, partial=partial)
    terms = objective.terms(None, target(main, strong, [0, 1, 2, 3]), STEP)
    p, q = softmax(main.double().numpy()), softmax(strong.double().numpy())
    entropy = -(p * np.log(p)).sum(1).mean()
    assert terms["entropy"].item() == pytest.approx(0.7 * entropy, rel=1e-5)
    mean = p.mean(0)
    if partial:
        assert "diversity" not in terms
    else:
        assert terms["diversity"].item() == pytest.approx(0.7 * (mean * np.log(mean)).sum(), rel=1e-5)
    taught = -(np.log(q[0, 2]) + np.log(q[2, 0]) + np.log(q[3, 1])) / 4  # the second image's votes differ
    assert terms["consistency"].item() == pytest.approx(1.3 * taught, rel=1e-5)
    assert "source" not in terms


def test_source_images_teach_when_they_are_there() -> None:
    logits = torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    source = Batch(torch.zeros(4, 4), logits, labels, torch.arange(4))
    terms = given([0, 1, 2, 0]).terms(source, target(logits, logits, [0, 1, 2, 3]), STEP)
    assert terms["source"].item() == pytest.approx(
        -np.log(softmax(logits.double().numpy())[range(4), labels]).mean(), rel=1e-5
    )
    assert Auto.needs.welcome_source
    assert not Auto.needs.source


def test_the_pseudo_labels_of_a_pass_are_constants_and_only_the_agreed_teach() -> None:
    main, strong = torch.randn(3, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    terms = given([1, -1, 2]).terms(None, target(main, strong, [0, 1, 2]), STEP)
    slopes = torch.autograd.grad(terms["consistency"], [main, strong], allow_unused=True)
    assert [slope is None for slope in slopes] == [True, False]
    assert bool((slopes[1][1] == 0).all())
    assert bool((slopes[1][[0, 2]] != 0).any())


def test_refresh_drops_images_whose_centroid_says_otherwise() -> None:
    # Two clusters; the last image lies in the first but is called the second.
    features = torch.tensor([[1.0, 0, 0, 0]] * 6 + [[0, 1.0, 0, 0]] * 6 + [[1.0, 0, 0, 0]])
    logits = torch.tensor([[4.0, 0, -9]] * 6 + [[0, 4.0, -9]] * 6 + [[0, 1.0, -9]])
    objective = Auto(TASK)
    objective.refresh(features, logits)
    assert objective.pseudo.tolist() == [0] * 6 + [1] * 6 + [-1]
