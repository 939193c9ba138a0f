"""ITMC: the student's loss by hand, when it cuts, and what becomes of its teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.commands import prune_words
from edgeprune.errors import UsageError
from edgeprune.methods import parts, work
from edgeprune.methods.itmc import ITMC, StudentLosses
from edgeprune.methods.job import Job
from edgeprune.options import PruneOptions
from edgeprune.prune.scores.transfer import Pass
from edgeprune.waist import Batch, Step


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_the_scored_loss_is_the_one_that_is_trained(planted: Callable[..., Job]) -> None:
    """Both against CE + tau^2 KL(T || S), in float64."""
    g = torch.Generator().manual_seed(0)
    s, t, taught = (torch.randn(6, 4, generator=g).double() for _ in range(3))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    p, q = softmax(taught.numpy() / 3), softmax(t.numpy() / 3)
    kl = 9 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    ce = 0.5 * -np.log(softmax(s.numpy())[range(6), labels.numpy()]).mean()
    knobs = ITMC(tau=3.0, source=0.5, score="student")

    class Teacher(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return taught

    losses = StudentLosses(knobs, Teacher())
    of_source, of_target = losses(Pass(s, s, s, labels), Pass(t, t, t))
    assert float(of_source) == pytest.approx(ce)
    assert float(of_target) == pytest.approx(kl)
    index = torch.arange(6)
    terms = knobs.objective(planted()).terms(
        Batch(s, s, labels, index), Batch(t, t, None, index, teacher=taught), Step(0, 1)
    )
    assert {k: float(v) for k, v in terms.items()} == pytest.approx({"source": ce, "distill": kl}, rel=1e-5)
    alone = StudentLosses(ITMC(score="source"), Teacher())(Pass(s, s, s, labels), Pass(t, t, t))
    assert [float(v) for v in alone] == pytest.approx([2 * ce, 0.0])
    classes = torch.tensor([2.0, 1.0, 1.0, 0.0])  # of a partial target
    counts = np.array([2, 1, 1, 0, 2, 1]) / 7
    of_source, _ = StudentLosses(knobs, Teacher(), classes)(Pass(s, s, s, labels), Pass(t, t, t))
    each = -np.log(softmax(s.numpy())[range(6), labels.numpy()])
    assert float(of_source) == pytest.approx(0.5 * float((counts * each).sum()))


def test_the_discrepancy_is_of_both_domains(planted: Callable[..., Job]) -> None:
    g = torch.Generator().manual_seed(1)
    s, t = torch.randn(6, 8, generator=g), torch.randn(5, 8, generator=g)
    head = torch.randn(8, 4, generator=g)
    s.requires_grad_(True)
    t.requires_grad_(True)
    knobs = ITMC(discrepancy=0.3, distill=False)
    labels = torch.zeros(6, dtype=torch.int64)
    parts_of = StudentLosses(knobs, nn.Identity())(Pass(s, s, s @ head, labels), Pass(t, t, t @ head))
    split = [*torch.autograd.grad(parts_of[0], s), *torch.autograd.grad(parts_of[1], t)]
    whole = knobs.objective(planted()).terms(
        Batch(s, s @ head, labels, torch.arange(6)), Batch(t, t @ head, None, torch.arange(5)), Step(0, 1)
    )
    together = torch.autograd.grad(torch.stack(list(whole.values())).sum(), (s, t))
    for found, expected in zip(split, together, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_nothing_is_cut_in_the_last_third(
    planted: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, float]] = []
    cut = parts.cut

    def spy(job: Job, ceilings: Any, number: int, criterion: Any) -> Any:
        done.append(("cut", ceilings["channels"]))
        return cut(job, ceilings, number, criterion)

    monkeypatch.setattr(parts, "cut", spy)
    monkeypatch.setattr(
        work, "learn", lambda job, objective, passes, stage, **_: done.append((stage, passes))
    )
    ITMC(teacher="fixed", after=4)(planted(recover=9.0))
    assert [name for name, _ in done if name != "cut"] == ["before", *(f"slice-{i}" for i in range(1, 10))]
    assert {passes for name, passes in done if name != "cut"} == {1.0}
    assert [name for name, _ in done[-3:]] == ["slice-7", "slice-8", "slice-9"]
    turns = [name for name, _ in done]
    done.clear()
    ITMC(teacher="fixed")(planted(recover=9.0))
    assert [name for name, _ in done] == turns[:-3], "the last stretch is one"
    assert [passes for name, passes in done if name != "cut"] == [1.0] * 6 + [4.0]
    kept = [value / 32 for name, value in done if name == "cut"]  # two inner layers of 16
    assert kept == pytest.approx([0.5 + 0.5 * (1 - i / 6) ** 3 for i in range(1, 7)])


@pytest.mark.parametrize("cuts", [1, 3])
def test_what_is_trained_is_counted(cuts: int, planted: Callable[..., Job]) -> None:
    """48 target images and 40 of the source: 32 a step of the student, and of the teacher, however many cuts."""
    job = planted(recover=18.0, iterations=cuts)
    ITMC(source=1.0, teacher_lr=1.0)(job)
    first, *later = job.trace
    assert first["images_before"] == 96, "two passes of 48 target images: a ninth of 18"
    assert sum(entry["images"] for entry in job.trace) == pytest.approx(18 * 48, abs=32 * 5)
    assert sum(entry["images_beside"] for entry in job.trace) == pytest.approx(20 * 48, abs=32 * 5)
    assert first["images_beside"] > first["images"]
    assert all("images_before" not in entry and entry["images_beside"] == entry["images"] for entry in later)
    fixed = planted(recover=18.0, iterations=cuts)
    ITMC(source=1.0, teacher="fixed")(fixed)
    assert all("images_beside" not in entry for entry in fixed.trace)
    assert fixed.trace[0]["images_before"] == 96


@pytest.mark.parametrize("kind", ["trained", "fixed"])
def test_the_teacher_learns_unless_it_is_fixed(
    kind: Any, planted: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is never the dense network that agreement is measured with."""
    seen: list[dict[str, torch.Tensor]] = []
    learn = work.learn

    def spy(job: Job, *words: Any, teacher: Any, **named: Any) -> None:
        seen.append({k: v.clone() for k, v in teacher.state_dict().items()})
        learn(job, *words, teacher=teacher, **named)

    monkeypatch.setattr(work, "learn", spy)
    job = planted(recover=6.0, iterations=2)
    before = {k: v.clone() for k, v in job.dense.state_dict().items()}
    ITMC(teacher=kind, teacher_lr=1.0)(job)
    moved = [any(not torch.equal(v, before[k]) for k, v in one.items()) for one in seen]
    assert moved == [kind == "trained"] * 3
    assert all(torch.equal(v, before[k]) for k, v in job.dense.state_dict().items())


def test_a_source_that_nothing_looks_at_is_said() -> None:
    options = PruneOptions(method="itmc", source=Path("lab"))
    assert [prune_words.unheard(options, method) for method in (ITMC(), ITMC(teacher="fixed"))] == [
        [],
        [
            "--source lab: --method itmc does not look at it: teacher=fixed, and the student learns on the target"
        ],
    ]
    for words in ({"source": 1.0}, {"discrepancy": 0.5}, {"score": "source"}):
        assert "source" not in ITMC(teacher="fixed", **words).ignores


def test_nothing_to_learn_is_said(planted: Callable[..., Job]) -> None:
    with pytest.raises(
        UsageError, match="with distill=false there is nothing to learn from; add --set source=1"
    ):
        ITMC(distill=False)(planted())


def test_what_a_channel_adds_to_the_distillation_to_second_order(planted: Callable[..., Job]) -> None:
    """1/2 d2/dz2 KL(teacher || student) by its gate z, whoever the teacher: here logits are linear in the gates."""
    job = planted()
    scores = ITMC()._rank(job, parts.couplings(job), nn.Identity())
    net: Any = job.network.module.double()
    assert isinstance(job.target.images, torch.Tensor)
    x = (job.target.images.double().permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        stream = net.norm(net.stem(x)).relu()
        stream = stream + net.first_out(net.first(stream).relu())
        inner = net.second(stream).relu()
    for seed in (0, 1):
        taught = torch.randn(48, 4, generator=torch.Generator().manual_seed(seed)).double().softmax(1)

        def loss(z: torch.Tensor, taught: torch.Tensor = taught) -> torch.Tensor:
            out = stream + net.second_out(inner * z[:, None, None])
            logp = net.head(out.mean((2, 3))).log_softmax(1)
            found: torch.Tensor = (taught * (taught.log() - logp)).sum(1).mean()
            return found

        curved = torch.func.hessian(loss)(torch.ones(16).double()).diagonal()
        torch.testing.assert_close(scores["second"], curved / 2, rtol=1e-4, atol=1e-9)
