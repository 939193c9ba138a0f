import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives.shot import SHOT, centroid_labels, marginal_entropy, mean_entropy
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def paper(z: Array, pseudo: NDArray[np.int64], beta: float, diversity: bool) -> float:
    p = softmax(z)
    loss = -float(np.mean([sum(q * math.log(q) for q in row) for row in p]))
    if diversity:
        loss += sum(q * math.log(q) for q in p.mean(0))
    return loss - beta * float(np.mean([math.log(p[i, k]) for i, k in enumerate(pseudo)]))


def paper_labels(features: Array, z: Array) -> list[int]:
    """Equations 6 and 7 with the authors' bias column, normalisation and list of classes that are predicted at all."""
    p = softmax(z)
    f = np.concatenate([features, np.ones((len(features), 1))], 1)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    k = p.shape[1]
    labels, affinity = p.argmax(1), p
    usable = [c for c in range(k) if (labels == c).any()]
    for _ in range(2):
        distance = {}
        for c in usable:
            if affinity[:, c].sum() > 0:
                centre = (affinity[:, c, None] * f).sum(0) / affinity[:, c].sum()
                distance[c] = 1 - f @ centre / np.linalg.norm(centre)
        labels = np.array([min(distance, key=lambda c: distance[c][i]) for i in range(len(f))])
        affinity = np.eye(k)[labels]
    return [int(label) for label in labels]


@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(("count", "classes"), [(1, 2), (6, 3), (16, 9)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(beta: float, partial: bool, count: int, classes: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(count)
    z = random.normal(0, 2, (count, classes)).astype(np.float32).astype(np.float64)
    whole = random.integers(0, classes, 40)
    index = random.permutation(40)[:count]
    logits = torch.tensor(z, dtype=dtype, requires_grad=True)
    objective = SHOT(Task(4, classes), SHOT.Knobs(beta=beta, partial=partial))
    objective.pseudo = torch.tensor(whole)
    terms = objective.terms(None, Batch(logits, logits, None, torch.tensor(index)), Step(0, 1))
    assert ("diversity" in terms) is not partial
    assert ("pseudo" in terms) is bool(beta)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    pseudo = whole[index]
    assert float(loss.detach()) == pytest.approx(paper(z, pseudo, beta, not partial), abs=1e-5)
    expected = np.zeros_like(z)
    for place in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[place] = 1e-5
        change = paper(z + step, pseudo, beta, not partial) - paper(z - step, pseudo, beta, not partial)
        expected[place] = change / 2e-5
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.double().numpy(), expected, atol=2e-6)


def test_entropies_in_float64() -> None:
    logits = torch.randn(
        7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    assert torch.autograd.gradcheck(mean_entropy, logits)
    assert torch.autograd.gradcheck(marginal_entropy, logits)
    assert float(mean_entropy(torch.zeros(3, 4))) == pytest.approx(math.log(4))
    assert float(marginal_entropy(torch.eye(4) * 100)) == pytest.approx(math.log(4))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("gone", [(), (4,), (0, 4)])
def test_pseudo_labels(seed: int, gone: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    centres = random.normal(0, 2, (5, 8))
    truth = random.integers(0, 4, 60)  # class 4 has no image
    features = centres[truth] + random.normal(0, 1, (60, 8))
    z = features @ centres.T / 4 + random.normal(0, 0.5, (60, 5))
    there = torch.tensor([c not in gone for c in range(5)])
    found = centroid_labels(torch.tensor(features), torch.tensor(z), there if gone else None)
    z[:, list(gone)] = -1e9
    assert found.tolist() == paper_labels(features, z)
    assert set(found.tolist()) <= set(z.argmax(1)) - set(gone)


def test_partial_gives_no_label_of_a_class_that_others_explain() -> None:
    """Of images of class 0 a fifth look like class 2, which has none of its own; it is predicted for twelve."""
    z = np.concatenate(
        [np.tile([2.0, 0, 1], (48, 1)), np.tile([1.0, 0, 1.2], (12, 1)), np.tile([0, 3.0, 0], (40, 1))]
    )
    features = torch.tensor(np.concatenate([z, z[:, ::-1]], 1))
    plain, partial = SHOT(Task(6, 3)), SHOT(Task(6, 3), SHOT.Knobs(partial=True))
    for objective in (plain, partial):
        objective.refresh(features, torch.tensor(z))
    assert set(plain.pseudo.tolist()) == {0, 1, 2}
    assert partial.pseudo.tolist() == [0] * 60 + [1] * 40


def test_a_small_target_keeps_its_labels_when_every_class_is_rare() -> None:
    z = torch.eye(4).repeat_interleave(3, 0) * 5
    objective = SHOT(Task(4, 4), SHOT.Knobs(partial=True))
    objective.refresh(z, z)
    assert objective.pseudo.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_pseudo_labels_are_saved_and_restored() -> None:
    first, second = SHOT(Task(4, 3)), SHOT(Task(4, 3))
    generator = torch.Generator().manual_seed(0)
    first.refresh(torch.randn(11, 4, generator=generator), torch.randn(11, 3, generator=generator))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.pseudo, first.pseudo)
    assert second.pseudo.dtype == torch.int64
    first.pseudo.zero_()
    assert second.pseudo.any()
