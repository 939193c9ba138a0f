import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune.objectives.cdan import CDAN, entropy_weights
from edgeprune.objectives.dann import reverse_gradient
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]
SOURCES, TARGETS, D, K = 5, 3, 4, 3


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def paper(f: Array, g: Array, discriminator: list[Array], entropy: bool) -> float:
    """Equations 5, 6 and 8 as a reader writes them: the discriminator's loss."""
    w1, b1, w2, b2 = discriminator
    judged = []
    for i in range(len(f)):
        h = np.outer(f[i], g[i]).ravel()
        judged.append(1 / (1 + math.exp(-(w2 @ np.maximum(w1 @ h + b1, 0) + b2).item())))
    w = (
        np.array([1 + math.exp(sum(p * math.log(p) for p in row)) for row in g])
        if entropy
        else np.ones(len(f))
    )
    w[:SOURCES] /= w[:SOURCES].mean()
    w[SOURCES:] /= w[SOURCES:].mean()
    losses = [-math.log(q) if i < SOURCES else -math.log(1 - q) for i, q in enumerate(judged)]
    return float((w * losses).mean())


def batches(dtype: torch.dtype) -> tuple[Batch, Batch]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for count in (SOURCES, TARGETS):
        features = torch.randn(count, D, generator=generator).to(dtype).requires_grad_()
        logits = (2 * torch.randn(count, K, generator=generator)).to(dtype).requires_grad_()
        made.append(Batch(features, logits, torch.zeros(count, dtype=torch.int64), torch.arange(count)))
    return made[0], made[1]


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("number", [1, 5, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(entropy: bool, number: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    source, target = batches(dtype)
    objective = CDAN(Task(D, K), CDAN.Knobs(weight=0.7, hidden=6, entropy=entropy))
    loss = objective.terms(source, target, Step(number, 11))["cdan"]
    loss.backward()  # type: ignore[no-untyped-call]
    f = torch.cat([source.features, target.features]).detach().double().numpy()
    g = softmax(torch.cat([source.logits, target.logits]).detach().double().numpy())
    parameters = [p.detach().double().numpy() for p in objective.discriminator.parameters()]
    assert float(loss.detach()) == pytest.approx(paper(f, g, parameters, entropy), rel=1e-5)
    strength = 2 / (1 + math.exp(-10 * number / 10)) - 1
    expected = np.zeros_like(f)
    for place in np.ndindex(f.shape):
        step = np.zeros_like(f)
        step[place] = 1e-6
        change = paper(f + step, g, parameters, entropy) - paper(f - step, g, parameters, entropy)
        expected[place] = -strength * 0.7 * change / 2e-6
    grads = [b.features.grad for b in (source, target)]
    np.testing.assert_allclose(torch.cat([x for x in grads if x is not None]).double(), expected, atol=1e-6)
    assert source.logits.grad is None  # g is a condition, and carries no gradient
    assert target.logits.grad is None
    for p, values in zip(objective.discriminator.parameters(), parameters, strict=True):
        for place in list(np.ndindex(values.shape))[:7]:  # the discriminator itself goes downhill
            was = values[place]
            values[place] = was + 1e-6
            up = paper(f, g, parameters, entropy)
            values[place] = was - 1e-6
            down = paper(f, g, parameters, entropy)
            values[place] = was
            assert p.grad is not None
            assert float(p.grad[place]) == pytest.approx((up - down) / 2e-6, abs=1e-6)


def test_no_reversal_at_the_first_step() -> None:
    source, target = batches(torch.float32)
    CDAN(Task(D, K)).terms(source, target, Step(0, 11))["cdan"].backward()  # type: ignore[no-untyped-call]
    assert source.features.grad is not None
    assert not source.features.grad.any()


def test_reverse_gradient() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x, 0.3)
    assert torch.equal(y, x)
    (y * torch.tensor([2.0, 5.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([-0.6, -1.5]))


def test_entropy_weights_mean_one_in_each_domain_and_favour_the_sure() -> None:
    g = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1], [0.6, 0.4]])
    w = entropy_weights(g, 2)
    assert float(w[:2].mean()) == pytest.approx(1)
    assert float(w[2:].mean()) == pytest.approx(1)
    assert w[0] / w[1] == pytest.approx(2 / 1.5)
    assert w[2] > w[3]


def test_random_maps_are_taken_for_wide_products_and_restored() -> None:
    torch.manual_seed(0)
    objective = CDAN(Task(200, 30))
    assert objective.random
    assert not CDAN(Task(128, 32)).random
    f, g = torch.randn(4, 200), torch.randn(4, 30).softmax(1)
    r, s = (m.double().numpy() for m in (objective.feature_map, objective.class_map))
    expected = (f.double().numpy() @ r) * (g.double().numpy() @ s) / math.sqrt(1024)
    np.testing.assert_allclose(objective.joint(f, g), expected, atol=1e-4)
    assert not [n for n, _ in objective.named_parameters() if "map" in n]
    other = CDAN(Task(200, 30))
    assert not torch.equal(other.feature_map, objective.feature_map)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other.joint(f, g), objective.joint(f, g))


def test_random_maps_keep_inner_products_on_average() -> None:
    torch.manual_seed(0)
    objective = CDAN(Task(200, 30))
    f, g = torch.randn(2, 200), torch.randn(2, 30)
    exact = float((f[0] @ f[0]) * (g[0] @ g[0]))
    assert float(objective.joint(f, g)[0] @ objective.joint(f, g)[0]) == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize("entropy", [True, False])
def test_partial_weighs_the_source_half(entropy: bool) -> None:
    torch.manual_seed(0)
    source, target = batches(torch.float64)
    source = Batch(source.features, source.logits, torch.arange(SOURCES) % K, source.index)
    objective = CDAN(Task(D, K), CDAN.Knobs(hidden=6, entropy=entropy, partial=True))
    objective.refresh(torch.zeros(3, D), torch.tensor([[50.0, 0, 0], [50.0, 0, 0], [0, 50.0, 0]]))
    loss = objective.terms(source, target, Step(5, 11))["cdan"]
    f = torch.cat([source.features, target.features]).detach().numpy()
    g = softmax(torch.cat([source.logits, target.logits]).detach().numpy())
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in objective.discriminator.parameters())
    gamma = np.array([2.0, 1.0, 0.0])[np.arange(SOURCES) % K]
    both = np.array([1 + math.exp((p * np.log(p)).sum()) for p in g]) if entropy else np.ones(len(g))
    both[:SOURCES] *= gamma
    total = 0.0
    for i, (x, p) in enumerate(zip(f, g, strict=True)):
        half = slice(0, SOURCES) if i < SOURCES else slice(SOURCES, None)
        weight = both[i] / both[half].mean()
        q = 1 / (1 + math.exp(-(w2 @ np.maximum(w1 @ np.outer(x, p).ravel() + b1, 0) + b2).item()))
        total -= weight * math.log(q if i < SOURCES else 1 - q) / len(f)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert source.features.grad is not None
    assert not source.features.grad[[2]].any()  # an image of the absent class is not asked
    assert source.features.grad[[0, 1, 3, 4]].any(1).all()
