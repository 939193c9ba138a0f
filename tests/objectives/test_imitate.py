"""Imitating a dense network: the answers, and the channels that both still have."""

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeprune.objectives.imitate import Imitate, Shared, relative_error
from edgeprune.waist import Batch, Step, Task

TASK = Task(6, 3)


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 5, 3, 3), 1), ((4, 3, 3, 5), -1), ((4, 7, 5), -1), ((4, 5), -1)]
)
def test_relative_error_is_that_of_the_shared_channels(shape: tuple[int, ...], axis: int) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    teacher = torch.randn(shape, generator=generator)
    kept = [0, 2, 3]
    student = torch.randn(teacher.index_select(axis, torch.tensor(kept)).shape, generator=generator)
    t = np.take(teacher.double().numpy(), kept, axis)
    expected = ((student.double().numpy() - t) ** 2).sum() / (t**2).sum()
    assert float(relative_error(student, teacher, torch.tensor(kept), axis)) == pytest.approx(
        expected, rel=1e-5
    )
    assert float(relative_error(10 * student, 10 * teacher, torch.tensor(kept), axis)) == pytest.approx(
        expected, rel=1e-5
    )


def batch(layer: Tensor, dense: Tensor) -> Batch:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    return Batch(
        torch.zeros(4, 6), logits, None, torch.arange(4), {}, {"a.b": layer}, logits.detach(), {"a.b": dense}
    )


def test_a_student_that_computes_what_the_dense_network_does_has_nothing_to_learn() -> None:
    dense = torch.randn(4, 6, 2, 2)
    student = dense[:, [1, 4]].clone().requires_grad_()
    terms = Imitate(TASK, {"a.b": Shared((1, 4), 1)}).terms(None, batch(student, dense), Step(0, 1))
    assert terms["layers"].item() == 0
    assert terms["distill"].item() == pytest.approx(0, abs=1e-6)
    moved = Imitate(TASK, {"a.b": Shared((1, 4), 1)}).terms(None, batch(student + 1, dense), Step(0, 1))[
        "layers"
    ]
    (gradient,) = torch.autograd.grad(moved, student)
    assert bool((gradient > 0).all())  # back down


def test_it_asks_for_the_layers_it_compares_and_for_none_without_them() -> None:
    assert Imitate(TASK, {"a.b": Shared((1,), -1)}).needs.layers == ("a.b",)
    assert set(Imitate(TASK, {}).terms(None, batch(torch.ones(1), torch.ones(1)), Step(0, 1))) == {"distill"}
