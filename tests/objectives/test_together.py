import pytest
import torch
from torch import Tensor

from edgeprune.objectives.adabn import AdaBN
from edgeprune.objectives.auto import Auto
from edgeprune.objectives.distill import Distill
from edgeprune.objectives.fixmatch import FixMatch
from edgeprune.objectives.mcc import MCC
from edgeprune.objectives.shot import SHOT
from edgeprune.objectives.source import Source
from edgeprune.objectives.together import Together
from edgeprune.waist import Batch, Needs, Objective, Step, Task

TASK = Task(3, 3)


class Layered(Objective):
    needs = Needs(views=("train", "strong"), layers=("a",))

    def __init__(self) -> None:
        super().__init__(TASK)
        self.own = torch.nn.Parameter(torch.ones(1))

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        return {"own": self.own.sum()}


class Inside(Layered):
    needs = Needs(views=("strong",), layers=("a",))


def batch(teacher: bool = False) -> Batch:
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    return Batch(z, z, torch.arange(6) % 3, torch.arange(6), teacher=z.flip(0) if teacher else None)


def test_terms_are_the_weighted_sums() -> None:
    parts: list[tuple[float, Objective]] = [(2.0, MCC(TASK)), (0.5, Distill(TASK)), (3.0, Source(TASK))]
    step = Step(5, 10)
    found = Together(parts).terms(batch(), batch(teacher=True), step)
    mcc, distill, source = (part.terms(batch(), batch(teacher=True), step) for _, part in parts)
    assert set(found) == {"source", "mcc", "distill"}
    torch.testing.assert_close(found["mcc"], 2 * mcc["mcc"])
    torch.testing.assert_close(found["distill"], 0.5 * distill["distill"])
    torch.testing.assert_close(found["source"], 2 * mcc["source"] + 3 * source["source"])


def test_needs_are_the_union() -> None:
    both = Together([(1, Layered()), (1, MCC(TASK)), (1, SHOT(TASK)), (1, Distill(TASK))])
    assert both.needs == Needs(
        source=True,
        views=("train", "strong"),
        layers=("a",),
        teacher=True,
        refresh=True,
        freeze_classifier=True,
        statistics=True,
    )
    assert [name for name, _ in both.named_parameters()] == ["parts.0.own"]
    assert Together([(1, Source(TASK))]).needs == Source.needs


def test_only_the_parts_that_asked_are_refreshed_and_saved() -> None:
    both, other = (Together([(1, MCC(TASK)), (1, SHOT(TASK))]) for _ in range(2))
    both.refresh(torch.eye(3), torch.eye(3) * 4)
    other.load_state_dict(both.state_dict())
    assert other.state_dict()["parts.1.pseudo"].tolist() == [0, 1, 2]


def test_statistics_alone_join_any_other() -> None:
    both = Together([(1, AdaBN(TASK)), (1, FixMatch(TASK))])
    assert both.needs.statistics
    assert both.needs.train
    assert both.needs.views == ("weak", "strong")
    assert Together([(1, AdaBN(TASK))]).needs == AdaBN.needs


def test_each_objective_sees_its_own_main_view() -> None:
    both = Together([(1, MCC(TASK)), (1, FixMatch(TASK)), (1, Auto(TASK))])
    assert both.needs.views == ("train", "weak", "strong")
    generator = torch.Generator().manual_seed(0)
    rows = {view: torch.randn(6, 3, generator=generator) for view in both.needs.views}
    views = {view: (row, row) for view, row in rows.items()}
    target = Batch(rows["train"], rows["train"], None, torch.arange(6), views)
    alone = Batch(rows["strong"], rows["strong"], None, torch.arange(6), {"strong": views["strong"]})
    for part in both.parts:
        if isinstance(part, Auto):
            part.pseudo = torch.tensor([0, 1, 2, -1, 0, 1])
            want = part.terms(None, alone, Step(0, 4))
    found = both.terms(batch(), target, Step(0, 4))
    torch.testing.assert_close(found["diversity"], want["diversity"])


def test_a_teacher_is_shown_the_view_of_the_one_that_asked() -> None:
    both = Together([(1, Auto(TASK)), (1, Distill(TASK))])
    assert both.needs.views == ("train", "strong")
    with pytest.raises(ValueError, match=r"a teacher is shown one main view; received \['strong', 'train'\]"):
        Together([(1, Distill(TASK)), (1, Inside())])
