import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeprune import train
from edgeprune.objectives.auto import Auto
from edgeprune.objectives.bnm import BNM
from edgeprune.objectives.cdan import CDAN
from edgeprune.objectives.dan import DAN
from edgeprune.objectives.dann import DANN
from edgeprune.objectives.fixmatch import FixMatch
from edgeprune.objectives.jan import JAN
from edgeprune.objectives.mcc import MCC
from edgeprune.objectives.prior import label_prior
from edgeprune.objectives.source import Source, class_weights, labelled
from edgeprune.waist import Batch, Objective, Step, Task
from tests.test_train import TASK, images, network, settings

Array = NDArray[np.float64]


def paper(z: Array, labels: NDArray[np.int64], smoothing: float) -> float:
    total = 0.0
    for row, label in zip(z, labels, strict=True):
        logs = row - math.log(sum(math.exp(v) for v in row))
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        total -= float(target @ logs)
    return total / len(z)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("count", "classes"), [(1, 2), (8, 5), (20, 12)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient(smoothing: float, count: int, classes: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(count)
    logits = torch.tensor(random.normal(0, 2, (count, classes)), dtype=dtype, requires_grad=True)
    z, labels = logits.detach().double().numpy(), random.integers(0, classes, count)
    batch = Batch(logits, logits, torch.tensor(labels), torch.arange(count))
    loss = Source(Task(3, classes), Source.Knobs(smoothing)).terms(batch, None, Step(0, 1))["source"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(paper(z, labels, smoothing), rel=1e-5)
    expected = np.zeros_like(z)
    for place in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[place] = 1e-5
        expected[place] = (paper(z + step, labels, smoothing) - paper(z - step, labels, smoothing)) / 2e-5
    assert logits.grad is not None
    close = 4e-3 if dtype == torch.bfloat16 else 1e-6
    np.testing.assert_allclose(logits.grad.double().numpy(), expected, atol=close)


def test_no_source_no_labels() -> None:
    z = torch.zeros(2, 3)
    for batch in (None, Batch(z, z, None, torch.arange(2))):
        with pytest.raises(ValueError, match=r"a labelled source batch is expected; .* must say source=True"):
            labelled(batch)


def test_class_weights_are_the_papers() -> None:
    z = np.random.default_rng(0).normal(0, 0.3, (20, 4))
    for temperature in (0.1, 1.0):
        p = np.exp(z / temperature)
        gamma = (p / p.sum(1, keepdims=True)).mean(0)
        found = class_weights(torch.tensor(z), temperature)
        np.testing.assert_allclose(found.numpy(), gamma / gamma.mean(), rtol=1e-4)


def test_partial_counts_source_images_by_class() -> None:
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    source = Batch(z, z, torch.arange(6) % 3, torch.arange(6))
    whole, part = MCC(Task(3, 3)), MCC(Task(3, 3), MCC.Knobs(partial=True))
    assert not whole.needs.refresh
    assert part.needs.refresh
    torch.testing.assert_close(part.labelled(source), whole.labelled(source))  # until the target was seen
    seen = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0], [9.0, 0, 0]])
    for objective in (whole, part):
        objective.refresh(seen, seen)
    assert part.gamma.tolist() == pytest.approx([2.25, 0.75, 0], abs=1e-6)
    losses = torch.nn.functional.cross_entropy(z, torch.arange(6) % 3, reduction="none")
    weight = torch.tensor([0.75, 0.25, 0] * 2)
    torch.testing.assert_close(part.labelled(source), (weight * losses).sum() / weight.sum())
    torch.testing.assert_close(whole.labelled(source), losses.mean())
    other = MCC(Task(3, 3), MCC.Knobs(partial=True))
    other.load_state_dict(part.state_dict())
    assert torch.equal(other.gamma, part.gamma)


@pytest.mark.parametrize("kind", [Source, Auto, MCC, FixMatch, DANN, CDAN, DAN, JAN, BNM])
def test_partial_is_a_switch_of_every_objective_with_source(kind: type[Objective]) -> None:
    """Its source cross entropy is sum_i w_i CE_i / sum_i w_i, w_i = gamma of the label, whichever way that is found:
    of sure answers PADA's mean (eq. 4) and the label prior are their shares, the latter as near as its rounds come.
    """
    random = torch.Generator().manual_seed(0)
    z, f = torch.randn(6, 3, generator=random), torch.randn(6, 3, generator=random)
    labels = torch.arange(6) % 3
    views = dict.fromkeys(("weak", "strong"), (f, z))
    source, target = Batch(f, z, labels, torch.arange(6)), Batch(f, z, None, torch.arange(6), views)
    smooth = {"smoothing": 0.0} if kind is Source else {}
    objective = kind(Task(3, 3), kind.Knobs(partial=True, **smooth))
    assert objective.partial
    assert objective.needs.refresh
    assert (objective.needs.statistics, objective.needs.frozen_statistics) == (True, True)
    seen = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0], [9.0, 0, 0], [9.0, 0, 0], [9.0, 0, 0]])
    objective.refresh(f, seen)
    losses = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    weight = torch.tensor([5 / 6, 1 / 6, 0] * 2)
    found = objective.terms(source, target, Step(0, 9))["source"]
    near = 1e-4 if getattr(kind, "compares", False) else 1e-5
    torch.testing.assert_close(found, (weight * losses).sum() / weight.sum(), rtol=near, atol=near)
    whole = kind(Task(3, 3), kind.Knobs(**smooth))
    whole.refresh(f, seen)
    torch.testing.assert_close(whole.terms(source, target, Step(0, 9))["source"], losses.mean())


def test_smoothing_and_class_weights_together() -> None:
    z, labels = np.random.default_rng(0).normal(0, 1, (4, 3)), np.array([0, 1, 2, 0])
    source = Batch(torch.tensor(z), torch.tensor(z), torch.tensor(labels), torch.arange(4))
    objective = Source(Task(3, 3), Source.Knobs(smoothing=0.2, partial=True))
    objective.refresh(torch.tensor(z), torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0]]))
    each = [paper(z[i : i + 1], labels[i : i + 1], 0.2) for i in range(4)]
    weight = np.array([2 / 3, 1 / 3, 0, 2 / 3])
    found = float(objective.terms(source, None, Step(0, 1))["source"])
    assert found == pytest.approx((weight * each).sum() / weight.sum(), rel=1e-5)


def test_source_looks_at_the_target_once_a_pass_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Source, "refresh", lambda _self, _features, logits: asked.append(len(logits)))
    net, target, source = network(), images(24, True, False), images(24, False, True)
    train.fit(
        net, Source(TASK, Source.Knobs(partial=True)), target, source, settings(9)
    )  # three steps a pass
    assert asked == [24] * 3
    train.fit(network(), Source(TASK), target, source, settings(9))
    assert len(asked) == 3


def test_who_compares_domains_weighs_them_by_the_label_prior() -> None:
    """Of class 1 there is no image of its own, and it is often the second guess."""
    seen = torch.tensor([[4.0, 3.9, 0]] * 30 + [[0, 0, 4.0]] * 10)
    for kind in (DANN, CDAN, DAN, JAN, MCC, BNM, FixMatch, Source, Auto):
        objective = kind(Task(3, 3), kind.Knobs(partial=True))
        for _ in range(2):
            objective.refresh(torch.randn(40, 3), seen)
        first = objective.gamma.clone()
        compares = kind in (DANN, CDAN, DAN, JAN)
        expected = label_prior(seen) * 3 if compares else class_weights(seen)
        torch.testing.assert_close(first, expected)
        assert (float(first[1]) < 0.05) == compares
        objective.refresh(torch.randn(40, 3), seen.flip(1))
        torch.testing.assert_close(objective.gamma, (first + first.flip(0)) / 2)


def test_a_batch_of_absent_classes_alone_is_no_nan() -> None:
    z = torch.randn(2, 3)
    part = MCC(Task(3, 3), MCC.Knobs(partial=True))
    part.refresh(z, torch.tensor([[90.0, 0, 0]]))
    assert float(part.labelled(Batch(z, z, torch.tensor([1, 2]), torch.arange(2)))) == 0
