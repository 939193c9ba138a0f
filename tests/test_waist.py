import math

import pytest
import torch

from edgeprune.waist import Needs, NoKnobs, Objective, Step, Task


def test_progress_goes_from_nothing_to_one() -> None:
    assert [Step(n, 5).progress for n in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert Step(0, 1).progress == 0


def test_rate_warms_up_and_falls_as_a_cosine() -> None:
    rates = [Step(n, 100).rate(0.1) for n in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert rates[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * n / 90)) for n in range(90)])
    assert Step(0, 1).rate(0.0) == 1
    assert all(0 < Step(n, 3).rate(1.0) <= 1 for n in range(3))


def test_inverse_decay_never_reaches_nothing() -> None:
    rates = [Step(n, 100).rate(0.1, "inverse") for n in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert rates[10:] == pytest.approx([(1 + 10 * n / 90) ** -0.75 for n in range(90)])


def test_an_objective_without_terms_says_its_name() -> None:
    class Empty(Objective):
        pass

    objective = Empty(Task(4, 3))
    assert objective.knobs == NoKnobs()
    assert objective.needs == Needs()
    objective.refresh(torch.zeros(1, 4), torch.zeros(1, 3))
    with pytest.raises(NotImplementedError, match="Empty states no terms"):
        objective.terms(None, None, Step(0, 1))
