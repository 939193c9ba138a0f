"""ADMP: its equations in float64, who ascends what, useless channels against a bad start, and who teaches."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.data.pixels import Pixels
from edgeprune.errors import UsageError
from edgeprune.images import Preprocess
from edgeprune.methods import parts
from edgeprune.methods.admp import ADMP, MEMORY, OPEN, Duel, Losses
from edgeprune.methods.job import Job
from edgeprune.model import Network
from edgeprune.options import PruneOptions
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune.budget import Budget
from edgeprune.prune.coupling import Coupling, Couplings
from edgeprune.waist import Batch, Step, Task

K, WIDTH = 4, 6
TASK = Task(3, K)
PLAN = PruningPlan((Cut("a", WIDTH, (0, 1, 2)), Cut("b", 3, (2,))))
COUPLINGS = Couplings((Coupling("a", WIDTH, ()), Coupling("b", 3, ())))


def batches(seed: int = 0, n: int = 6) -> tuple[Batch, Batch]:
    g = torch.Generator().manual_seed(seed)
    z = [torch.randn(n, K, generator=g, dtype=torch.float64) * 2 for _ in range(3)]
    f = torch.zeros(n, 3)
    source = Batch(f, z[0].requires_grad_(), torch.arange(n) % K, torch.arange(n))
    return source, Batch(f, z[1].requires_grad_(), None, torch.arange(n), teacher=z[2])


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def reading(source: Batch, target: Batch, how: ADMP, a: float, clean: list[int]) -> dict[str, float]:
    """The three terms, image by image."""
    assert source.labels is not None
    assert target.teacher is not None
    p, q = softmax(source.logits.detach().numpy()), softmax(target.logits.detach().numpy())
    t = softmax(target.teacher.numpy())
    ce = [-math.log(p[i, int(y)]) for i, y in enumerate(source.labels)]
    pseudo = [-math.log(q[i, t[i].argmax()]) if t[i].max() >= how.threshold else 0.0 for i in clean]
    l1 = [sum(abs(t[i, k] - q[i, k]) for k in range(K)) / K for i in range(len(q))]
    kl = [sum(t[i, k] * math.log(t[i, k] / q[i, k]) for k in range(K)) for i in range(len(q))]
    far = l1 if how.divergence == "l1" else kl
    return {
        "source": float(np.mean(ce)),
        "pseudo": a * float(np.mean(pseudo)),
        "divergence": how.lam * float(np.mean(far)),
    }


@pytest.mark.parametrize("kind", ["l1", "kl"])
@pytest.mark.parametrize("soft", ["none", "random", "adversary"])
def test_terms_are_their_equations(soft: Any, kind: Any) -> None:
    how = ADMP(soft=soft, divergence=kind, threshold=0.6, pseudo=0.7, lam=1.3)
    source, target = batches()
    assert target.teacher is not None
    sure = target.teacher.softmax(1).amax(1) >= 0.6
    assert 0 < int(sure[::2].sum()) < 3  # of the clean rows some count and some do not
    ramp = 2 / (1 + math.exp(-10 * 3 / 9)) - 1
    duel = Duel(TASK, how, COUPLINGS, PLAN)
    found = {k: float(v.detach()) for k, v in duel.terms(source, target, Step(3, 10)).items()}
    assert found == pytest.approx(
        reading(source, target, how, 0.7 * ramp, list(range(6)) if soft == "none" else [0, 2, 4]), abs=1e-5
    )
    found = {k: float(v.detach()) for k, v in Losses(TASK, how).terms(source, target, Step(3, 10)).items()}
    assert found == pytest.approx(reading(source, target, how, 0.7, list(range(6))), abs=1e-5)
    only = torch.zeros(K)  # of a partial target
    assert source.labels is not None
    only[source.labels[0]] = 1.0
    weighed = Losses(TASK, how, only).terms(source, target, Step(3, 10))["source"]
    rows = source.labels == source.labels[0]
    assert not rows.all()
    alone = F.cross_entropy(source.logits[rows].float(), source.labels[rows])
    torch.testing.assert_close(weighed, alone)


def masks(duel: Duel, images: int = 4, training: bool = True) -> Tensor:
    """(N, 9) of a forward pass, or (9,)."""
    return torch.cat(list(duel.values(images, training).values()), -1)


def test_every_second_image_meets_both_masks() -> None:
    duel = Duel(TASK, ADMP(), COUPLINGS, PLAN)
    with torch.no_grad():
        duel.hard.copy_(torch.linspace(0.1, 0.9, 9))
        duel.tilt.copy_(torch.linspace(-2, 2, 9))
    both = duel.hard * duel.tilt.sigmoid()
    torch.testing.assert_close(masks(duel), torch.stack([duel.hard, both, duel.hard, both]))
    bare = Duel(TASK, ADMP(soft="none"), COUPLINGS, PLAN)
    torch.testing.assert_close(masks(bare), bare.hard.detach())
    kept = [1.0, 1, 1, 0, 0, 0, 0, 0, 1]
    assert masks(duel, training=False).tolist() == kept  # where the network is only looked at: z
    straight = Duel(TASK, ADMP(soft="none", admm=False), COUPLINGS, PLAN)
    assert masks(straight).tolist() == kept
    masks(straight).sum().backward()  # type: ignore[no-untyped-call]
    assert straight.hard.grad is not None
    assert straight.hard.grad.tolist() == [1.0] * 9  # also to channels that are off


def test_a_random_soft_mask_is_chance_of_each_channel_and_image_and_learns_nothing() -> None:
    duel = Duel(TASK, ADMP(soft="random"), COUPLINGS, PLAN)
    with torch.no_grad():
        duel.hard.copy_(torch.linspace(0.1, 0.9, 9))
    torch.manual_seed(0)
    found = masks(duel, images=4000).detach()
    torch.testing.assert_close(found[::2], duel.hard.detach().expand(2000, 9))
    kept = found[1::2] / duel.hard.detach()
    assert set(kept.round(decimals=5).flatten().tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(kept.mean(0).numpy(), 1 / (1 + math.exp(-OPEN)), atol=0.03)
    masks(duel).sum().backward()  # type: ignore[no-untyped-call]
    assert duel.tilt.grad is None
    before = duel.tilt.detach().clone()
    duel.before_update(Step(0, 40))
    assert torch.equal(duel.tilt, before)


@pytest.mark.parametrize("domain", ["source", "target"])
def test_the_adversary_has_the_sign_of_its_line(domain: Any) -> None:
    """h descends both losses; v ascends the target's, and descends b times the source's."""
    duel = Duel(TASK, ADMP(b=0.5), COUPLINGS, PLAN)
    duel.before_forward(domain)
    slope = torch.linspace(-1, 2, 9)  # of the loss by the masks, the same for all four images
    (masks(duel) * slope).sum().backward()  # type: ignore[no-untyped-call]
    s = duel.tilt.detach().sigmoid()
    assert duel.hard.grad is not None
    assert duel.tilt.grad is not None
    torch.testing.assert_close(duel.hard.grad, slope * (2 + 2 * s))
    plain = 2 * slope * s * (1 - s)
    torch.testing.assert_close(duel.tilt.grad, -plain if domain == "target" else 0.5 * plain)
    before = duel.tilt.detach().clone()
    duel.before_update(Step(0, 40))
    moved = (duel.tilt.detach() - before)[slope.abs() > 1e-6]
    want = slope[slope.abs() > 1e-6]
    assert torch.equal(moved.sign(), want.sign() if domain == "target" else -want.sign())


def test_admm_is_its_equations() -> None:
    """h, z, u over 25 steps against a plain reading with numpy; the optimiser is left nothing."""
    how = ADMP(soft="none", rho0=0.2, rho1=2.0, every=5, rate=0.3)
    duel = Duel(TASK, how, COUPLINGS, PLAN)
    random = np.random.default_rng(0)
    h, u, total = np.ones(9), np.zeros(9), 25
    z = np.array([1.0, 1, 1, 0, 0, 0, 0, 0, 1])
    mean, square = np.zeros(9), np.zeros(9)
    pull = random.normal(0, 1, 9)
    for number in range(total):
        g = pull + random.normal(0, 0.3, 9)
        duel.hard.grad = torch.tensor(g, dtype=torch.float32)
        duel.before_update(Step(number, total))
        assert all(p.grad is None for p in duel.parameters())
        power = np.repeat([np.mean(g[:6] ** 2), np.mean(g[6:] ** 2)], [6, 3])
        mean, square = MEMORY * mean + (1 - MEMORY) * g, MEMORY * square + (1 - MEMORY) * power
        part = 1 - MEMORY ** (number + 1)
        unit = (mean / part) / np.sqrt(square / part)
        rho = 0.2 * 10 ** ((number // 5) / 5)
        h = np.clip(h - 0.3 * (unit / rho + h - z + u), 0, 1)
        if number % 5 == 4:
            z = np.zeros(9)
            for place, k in ((slice(0, 6), 3), (slice(6, 9), 1)):
                z[place][np.argsort(-(h + u)[place], kind="stable")[:k]] = 1
            u = (u + h - z) * rho / (0.2 * 10 ** (((number + 1) // 5) / 5))
        np.testing.assert_allclose(duel.hard.detach().numpy(), h, atol=1e-3)
        np.testing.assert_allclose(duel.dual.numpy(), u, atol=1e-3)
        assert duel.chosen.tolist() == z.astype(bool).tolist()
    assert duel.chosen.tolist() != [True] * 3 + [False] * 5 + [True]
    cuts = {cut.root: cut.keep for cut in duel.plan(PLAN).cuts}
    assert {root: len(keep) for root, keep in cuts.items()} == {"a": 3, "b": 1}
    assert all(np.sort(-(h + u)[:6])[2] >= -(h + u)[c] - 1e-3 for c in cuts["a"])


DEAD = {"first.0": (0, 2, 3, 6, 9, 11, 13, 15), "second.0": (1, 4, 5, 7, 8, 10, 12, 14)}


def block() -> nn.Sequential:
    inner = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*inner, nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))


class Stripes(nn.Module):
    """Two residual blocks in which half of the inner channels, DEAD, never fire."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.second, self.head = block(), block(), nn.Linear(8, K)
        with torch.no_grad():
            for root, dead in DEAD.items():
                self.get_submodule(root.replace(".0", ".1")).bias[list(dead)] = -20  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.first(x)
        x = x + self.second(x)
        out: Tensor = self.head(x.relu().mean((2, 3)))
        return out


def stripes(count: int, seed: int, noise: float, labelled: bool) -> Pixels:
    """Rows, columns, a chequerboard, grey: patterns that have to be looked for, under noise."""
    generator, y = torch.Generator().manual_seed(seed), torch.arange(count) % K
    base = torch.zeros(K, 8, 8, 3)
    base[0, ::2], base[1, :, ::2], base[2, ::2, ::2], base[2, 1::2, 1::2], base[3] = 90, 90, 90, 90, 45
    x = base[y] + 60 + noise * torch.randn(count, 8, 8, 3, generator=generator)
    return Pixels(x.clamp(0, 255).to(torch.uint8), y if labelled else None, [str(i) for i in range(count)])


@cache
def trained() -> nn.Module:
    module, source = Stripes(), stripes(160, 0, 25.0, True)
    assert source.labels is not None
    assert isinstance(source.images, Tensor)
    x = (source.images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for step in range(60):
        rows = torch.randperm(160, generator=torch.Generator().manual_seed(step))[:32]
        loss = nn.functional.cross_entropy(module(x[rows]), source.labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module.eval()


def striped(**options: Any) -> Job:
    """Half of the inner channels may stay, and half are dead."""
    pre = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)
    network = Network(copy.deepcopy(trained()), "stripes", pre, tuple("abcd"), "head")
    words = {"recover": 0.0, "multiple": 1, "floor": 0.0, "batch": 16, "channels": "0.5", **options}
    how = Budget.parse(macs=None, params=None, channels=words["channels"])
    images = stripes(64, 1, 40.0, False), stripes(48, 2, 25.0, True)
    return Job.of(network, images, how, PruneOptions(flip=False, device="cpu", **words), None)


def still_there(job: Job) -> int:
    return sum(len(set(kept) & set(DEAD[root])) for root, kept in job.kept.items())


def test_dead_channels_leave_and_no_others() -> None:
    job = striped()
    ADMP(passes=10.0)(job)
    assert {r: tuple(sorted(set(range(16)) - set(k))) for r, k in job.kept.items()} == DEAD


def test_masks_mend_a_bad_start() -> None:
    """From a random choice, in which about half is dead, most of the dead are exchanged for what the loss asks for."""
    start, found = (
        striped(score="random", rank="local", seed=2),
        striped(score="random", rank="local", seed=2),
    )
    ADMP(passes=0.0)(start)
    assert still_there(start) >= 6
    ADMP(soft="none", passes=40.0)(found)
    assert still_there(found) <= 2
    assert found.trace[-1]["swapped"] >= still_there(start) - 2
    assert found.trace[-1]["mask_gap"] < 0.5


def test_masks_that_learn_nothing_leave_the_plan_as_it_is() -> None:
    plain, masked = striped(score="magnitude"), striped(score="magnitude")
    parts.cut(plain, parts.limits(plain)[-1])
    ADMP(passes=0.0)(masked)
    assert masked.kept == plain.kept
    assert masked.kept[next(iter(plain.kept))] != list(range(len(masked.kept[next(iter(plain.kept))])))
    assert masked.trace[-1]["images_beside"] == 0
    nothing = striped(channels="100%")
    ADMP(passes=1.0)(nothing)
    assert nothing.kept == {}


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"every": 0}, "every=0: expected 1 or more"),
        ({"rho0": 0.0}, "rho0=0: expected a number above 0"),
        ({"passes": -1.0}, "passes=-1: expected a number of 0 or more"),
        ({"passes": float("inf")}, "passes=inf: expected a number of 0 or more"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        ADMP(**knobs)


def test_a_teacher_that_follows_is_the_average() -> None:
    duel, module = (
        Duel(TASK, ADMP(teacher="ema"), COUPLINGS, PLAN),
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
    )
    duel.needs = replace(duel.needs, frozen_statistics=True)
    duel.follow(module)
    assert duel.teacher is not None
    assert (
        "1.running_mean" in duel.teacher.state_dict()
    )  # a batch of a target without some classes has others
    duel.needs = replace(duel.needs, frozen_statistics=False)
    duel.follow(module)
    assert "1.running_mean" not in duel.teacher.state_dict()
    before = duel.teacher[0].weight.clone()  # type: ignore[index]
    with torch.no_grad():
        next(module.parameters()).add_(1)
    duel.train().before_update(Step(0, 40))
    torch.testing.assert_close(duel.teacher[0].weight, before + 0.01)  # type: ignore[index]
    assert not duel.teacher.training
    duel.before_forward("source")
    assert masks(duel, 8)[[0, 4]].tolist() == [[1.0] * 9] * 2  # a quarter of the source trains the full size


@pytest.mark.parametrize("kind", ["frozen", "ema", "joint"])
def test_who_learned_teaches_to_the_end(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over three cuts: the full-size network as it is after the first masks, or the dense one."""
    taught: dict[str, nn.Module | None] = {}
    learn = parts.learn

    def spy(job: Job, objective: Any, steps: int, stage: str, **named: Any) -> Any:
        taught[stage] = named["teacher"]
        return learn(job, objective, steps, stage, **named)

    monkeypatch.setattr(parts, "learn", spy)
    job = striped(iterations=3, schedule="linear", recover=4.0, between=1.5)
    ADMP(passes=2.0, teacher=kind)(job)
    assert list(taught) == [f"{what}-{cut}" for cut in (1, 2, 3) for what in ("mask", "recover")]
    first = taught["mask-1"]
    assert all(one is first for one in taught.values())
    assert (first is None) == (kind == "frozen")
    if first is not None:
        dense, now = dict(job.dense.named_parameters()), dict(first.named_parameters())
        assert {k: v.shape for k, v in now.items()} == {k: v.shape for k, v in dense.items()}
        assert not all(torch.equal(v, dense[k]) for k, v in now.items())
    assert sum(len(kept) for kept in job.kept.values()) == 16, "half of 32, after three cuts"
    # Two passes of 64, both domains together, beside the masks of the first cut; those of the others count.
    assert [entry.get("images_beside") for entry in job.trace] == [128, None, None]
    assert [entry["images"] for entry in job.trace] == [64, 64 + 128, 128 + 128]
