from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives.nrc import NRC, neighbour_pull
from edgeprune.objectives.prior import label_prior
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]
Slope = Callable[[Callable[[Array], float], Array], Array]


def softmax(z: Array) -> Array:
    return np.asarray(np.exp(z) / np.exp(z).sum(1, keepdims=True))


def nearest(bank: Array, i: int, count: int) -> list[int]:
    order = [int(j) for j in np.argsort(-(bank @ bank[i])) if j != i]
    return order[:count]


def paper(z: Array, index: list[int], bank: Array, scores: Array, near: int, further: int) -> float:
    """Equations 3 and 6, image by image; the banks are constants."""
    p, total = softmax(z), 0.0
    for row, i in enumerate(index):
        for k in nearest(bank, i, near):
            second = nearest(bank, k, further)
            total -= (1.0 if i in second else 0.1) * (scores[k] @ p[row])
            total -= sum(0.1 * (scores[m] @ p[row]) for m in second)
    return total / len(index)


def test_an_image_that_comes_twice_is_kept_as_it_came_last() -> None:
    objective = NRC(Task(2, 2), NRC.Knobs(near=1, further=1))
    objective.refresh(torch.eye(2).repeat(2, 1), torch.zeros(4, 2))
    features, logits = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    objective.terms(None, Batch(features, logits, None, torch.tensor([2, 2])), Step(0, 9))
    torch.testing.assert_close(objective.features[2], features[1])
    torch.testing.assert_close(objective.scores[2], logits[1].softmax(0))


@pytest.mark.parametrize(("near", "further"), [(1, 1), (3, 2), (50, 50)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(near: int, further: int, dtype: torch.dtype, slope: Slope) -> None:
    random, index = np.random.default_rng(0), [4, 0, 9]
    bank, all_logits = random.normal(0, 1, (12, 5)), random.normal(0, 2, (12, 3))
    f, z = random.normal(0, 1, (3, 5)), random.normal(0, 2, (3, 3))
    objective = NRC(Task(5, 3), NRC.Knobs(near=near, further=further))
    objective.refresh(torch.tensor(bank), torch.tensor(all_logits))
    logits = torch.tensor(z, dtype=dtype, requires_grad=True)
    target = Batch(torch.tensor(f, dtype=dtype), logits, None, torch.tensor(index))
    terms = objective.terms(None, target, Step(0, 9))
    terms["neighbours"].backward()  # type: ignore[no-untyped-call]
    scores = softmax(all_logits)
    bank[index], scores[index] = f, softmax(z)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    near, further = min(near, 11), min(further, 11)
    assert float(terms["neighbours"].detach()) == pytest.approx(
        paper(z, index, bank, scores, near, further), abs=1e-5
    )
    assert logits.grad is not None
    expected = slope(lambda u: paper(u, index, bank, scores, near, further), z)
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-5)
    mean = softmax(z).mean(0)
    assert float(terms["diversity"].detach()) == pytest.approx(float((mean * np.log(mean)).sum()), abs=1e-5)
    np.testing.assert_allclose(objective.features.numpy(), bank, atol=1e-6)


def test_partial_is_drawn_to_the_prior_of_the_first_look() -> None:
    """KL(q || mean p) and its gradient by hand; q: the label prior of 40 images, and of one that all share."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.tensor([[4.0, 0, 1]] * 30 + [[0, 4.0, 1]] * 10)
    objective = NRC(Task(5, 3), NRC.Knobs(partial=True))
    for logits in (seen, seen.flip(1)):  # the second look changes nothing
        objective.refresh(torch.randn(40, 5, generator=generator), logits)
    assert objective.needs.freeze_classifier
    assert objective.needs.frozen_statistics
    assert not NRC(Task(5, 3)).needs.freeze_classifier
    q = (label_prior(seen).double().numpy() * 40 + 1 / 3) / 41
    assert q.argmin() == 2
    z = np.random.default_rng(0).normal(0, 2, (4, 3))
    logits = torch.tensor(z, requires_grad=True)
    target = Batch(torch.randn(4, 5), logits, None, torch.arange(4))
    found = objective.terms(None, target, Step(0, 9))["diversity"]
    found.backward()  # type: ignore[no-untyped-call]
    p = softmax(z)
    mean = p.mean(0)
    assert float(found.detach()) == pytest.approx(float((q * np.log(q / mean)).sum()), abs=1e-5)
    pull = -q / mean / 4  # of each p_ic, before the softmax
    assert logits.grad is not None
    expected = p * (pull - (p * pull).sum(1, keepdims=True))
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-5)


def test_banks_and_prior_are_saved() -> None:
    one, other = (NRC(Task(5, 3), NRC.Knobs(partial=True)) for _ in range(2))
    one.refresh(torch.randn(7, 5), torch.randn(7, 3))
    other.load_state_dict(one.state_dict())
    for name in ("scores", "features", "prior"):
        assert torch.equal(getattr(other, name), getattr(one, name))


def test_autocast_asks_the_same_neighbours() -> None:
    random = torch.Generator().manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(300, 32, generator=random), dim=1)
    scores, index = torch.randn(300, 5, generator=random).softmax(1), torch.arange(300)
    plain = neighbour_pull(bank, scores, index, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(neighbour_pull(bank, scores, index, 4, 3), plain)
