"""The objectives' equations, values and gradients, against plain float64 numpy readings of the papers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives import cdan, distill, fixmatch, mcc, shot
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]
SHAPES = [(4, 3), (17, 7), (36, 31)]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def logits(n: int, k: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 3, (n, k))


def slope(f: Callable[[Array], float], z: Array, direction: Array, h: float = 1e-6) -> float:
    """The derivative of f at z along a direction, by central differences."""
    return (f(z + h * direction) - f(z - h * direction)) / (2 * h)


def agree(ours: Callable[[torch.Tensor], torch.Tensor], theirs: Callable[[Array], float], z: Array) -> None:
    """Values in float64 and float32, and the gradient along a random direction."""
    x = torch.tensor(z, requires_grad=True)
    value = ours(x)
    assert float(value.detach()) == pytest.approx(theirs(z), rel=1e-9, abs=1e-12)
    assert float(ours(torch.tensor(z, dtype=torch.float32))) == pytest.approx(theirs(z), rel=1e-4, abs=1e-5)
    (gradient,) = torch.autograd.grad(value, x)
    direction = np.random.default_rng(1).normal(size=z.shape)
    assert float((gradient.numpy() * direction).sum()) == pytest.approx(slope(theirs, z, direction), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])
def test_mcc(n: int, k: int, temperature: float) -> None:
    z0 = logits(n, k)
    y0 = softmax(z0 / temperature)
    w = 1 + np.exp((y0 * np.log(y0)).sum(1))  # eq. 4; a constant for the gradient
    w = n * w / w.sum()

    def reading(z: Array) -> float:
        y = softmax(z / temperature)
        c = np.zeros((k, k))
        for i in range(n):
            c += w[i] * np.outer(y[i], y[i])
        c = c / c.sum(1, keepdims=True)
        return float(sum(c[a, b] for a in range(k) for b in range(k) if a != b) / k)

    agree(lambda z: mcc.class_confusion(z, temperature), reading, z0)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_shot_entropies(n: int, k: int) -> None:
    def conditional(z: Array) -> float:
        p = softmax(z)
        return float(np.mean([-(row * np.log(row)).sum() for row in p]))

    def marginal(z: Array) -> float:
        m = softmax(z).mean(0)
        return float(-(m * np.log(m)).sum())

    agree(shot.mean_entropy, conditional, logits(n, k))
    agree(shot.marginal_entropy, marginal, logits(n, k))


@pytest.mark.parametrize("rare", [0, 2])
def test_shot_centroids(rare: int) -> None:
    random = np.random.default_rng(0)
    f, z = random.normal(size=(40, 6)), logits(40, 5)
    p = softmax(z)
    g = np.concatenate([f, np.ones((40, 1))], 1)
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    first = p.argmax(1)
    allowed = [c for c in range(5) if np.sum(first == c) > rare] if rare else list(range(5))
    labels: Array = first
    for weight in (p, None):
        w = weight if weight is not None else np.eye(5)[labels]
        present = [c for c in allowed if w[:, c].sum() > 0]
        centroids = {c: (w[:, [c]] * g).sum(0) / w[:, c].sum() for c in present}
        cosine = {c: g @ v / np.linalg.norm(v) for c, v in centroids.items()}
        labels = np.array([max(present, key=lambda c: cosine[c][i]) for i in range(40)])  # noqa: B023
    ours = shot.centroid_labels(torch.tensor(f), torch.tensor(z), rare)
    assert ours.tolist() == labels.tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.95])
def test_fixmatch(threshold: float) -> None:
    weak = logits(20, 6)
    p = softmax(weak)

    def reading(strong: Array) -> float:
        q = softmax(strong)
        kept = [-np.log(q[i, p[i].argmax()]) for i in range(20) if p[i].max() >= threshold]
        return float(np.sum(kept) / 20)

    agree(
        lambda s: fixmatch.pseudo_label_loss(torch.tensor(weak, dtype=s.dtype), s, threshold),
        reading,
        logits(20, 6, seed=2),
    )


def test_fixmatch_sends_no_gradient_through_the_weak_view() -> None:
    weak = torch.tensor(logits(8, 3), requires_grad=True)
    strong = torch.tensor(logits(8, 3, 1), requires_grad=True)
    fixmatch.pseudo_label_loss(weak, strong, 0.1).backward()  # type: ignore[no-untyped-call]
    assert weak.grad is None
    assert strong.grad is not None


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_distillation(temperature: float) -> None:
    teacher = logits(9, 5, 3)
    p = softmax(teacher / temperature)

    def reading(z: Array) -> float:
        q = softmax(z / temperature)
        return float(temperature**2 * (p * np.log(p / q)).sum() / len(z))

    agree(lambda z: distill.softened_kl(torch.tensor(teacher, dtype=z.dtype), z, temperature), reading, logits(9, 5))


def test_cdan_joint_map_and_weights() -> None:
    random = np.random.default_rng(0)
    f, g = random.normal(size=(6, 4)), softmax(logits(6, 3))
    objective = cdan.CDAN(Task(4, 3))
    joint = objective.joint(torch.tensor(f), torch.tensor(g)).numpy()
    np.testing.assert_allclose(joint, np.stack([np.outer(f[i], g[i]).ravel() for i in range(6)]))
    w = 1 + np.exp((g * np.log(g)).sum(1))
    expected = np.concatenate([w[:2] / w[:2].mean(), w[2:] / w[2:].mean()])
    np.testing.assert_allclose(cdan.entropy_weights(torch.tensor(g), 2).numpy(), expected, rtol=1e-6)


def test_cdan_random_maps_are_part_of_what_resumes() -> None:
    one, other = cdan.CDAN(Task(600, 10)), cdan.CDAN(Task(600, 10))
    features, g = torch.randn(3, 600), torch.randn(3, 10).softmax(1)
    assert not torch.allclose(one.joint(features, g), other.joint(features, g))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.joint(features, g), other.joint(features, g))


def test_the_reversal_turns_the_gradient() -> None:
    x = torch.randn(5, requires_grad=True)
    cdan.reverse_gradient(3 * x, 0.5).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.full((5,), -1.5))


def test_shot_keeps_its_pseudo_labels_when_it_resumes() -> None:
    one, other = shot.SHOT(Task(4, 3)), shot.SHOT(Task(4, 3))
    one.refresh(torch.randn(12, 4), torch.randn(12, 3))
    other.load_state_dict(one.state_dict())
    target: Any = Batch(torch.randn(5, 4), torch.randn(5, 3), None, torch.arange(5))
    a = one.terms(None, target, Step(0, 10))
    b = other.terms(None, target, Step(0, 10))
    assert a.keys() == {"entropy", "diversity", "pseudo"}
    assert all(torch.equal(a[k], b[k]) for k in a)
