"""TCP: its score against a plain float64 reading of eq. 11, its ramp, its iterations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune import inference
from edgeprune.methods import parts, work
from edgeprune.methods.job import Job
from edgeprune.methods.tcp import CODE_WEIGHT, TCP, Losses, beta
from edgeprune.objectives.source import class_weights
from edgeprune.prune import graph
from edgeprune.prune.scores.random import Random
from edgeprune.prune.scores.transfer import Pairs, Pass, Transfer, additive

WIDTH = 5


class Net(nn.Module):
    """One inner layer, whose channels can be scaled by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.outer = nn.Conv2d(4, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 4, 1)
        self.after = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def features(self, x: Tensor, scale: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        inner = self.inner(x).relu() * scale[None, :, None, None]
        out: Tensor = (x + self.after(self.outer(inner))).mean((2, 3))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x, x.new_ones(WIDTH)))
        return out


def cross_entropy(logits: Any, labels: Any) -> float:
    return float(np.mean([math.log(np.exp(z).sum()) - z[y] for z, y in zip(logits, labels, strict=True)]))


def mmd(s: Any, t: Any, mean: float) -> float:
    """Pair by pair: five Gaussians around `mean`, which is a constant; no row meets itself."""

    def k(x: Any, y: Any) -> float:
        return sum(math.exp(-((x - y) ** 2).sum() / (2 * a * mean)) for a in (0.125, 0.25, 0.5, 1, 2))

    n, m = len(s), len(t)
    same = sum(k(s[i], s[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(t[i], t[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same + other - 2 * sum(k(x, y) for x in s for y in t) / (n * m)


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    g = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(4, 3, 6, 6, generator=g).double(),
            torch.tensor([0, 2, 1, 0]),
            torch.randn(5, 3, 6, 6, generator=g).double() + 0.5,
        )
        for _ in range(2)
    ]


def reading(
    net: Net, batch: tuple[Tensor, Tensor, Tensor], channel: int, frozen: bool = False
) -> dict[str, float]:
    """dL/dz of a scale z on one channel of one domain, by central differences: that is the sum of a dL/da.

    frozen: batch-norm by its running statistics.
    """
    images, labels, other = batch
    step = 1e-5

    @torch.no_grad()
    def both(where: str, amount: float) -> tuple[float, float]:
        scale = torch.ones(WIDTH).double()
        scale[channel] = amount
        one = torch.ones(WIDTH).double()
        s = net.features(images, scale if where == "s" else one)
        t = net.features(other, scale if where == "t" else one)
        rows = torch.cat([net.features(images, one), net.features(other, one)]).numpy()
        mean = float(np.mean([((a - b) ** 2).sum() for a in rows for b in rows]))
        return cross_entropy(net.head(s).numpy(), labels.numpy()), mmd(s.numpy(), t.numpy(), mean)

    net.train(not frozen)
    out = {}
    for where in "st":
        (c1, m1), (c0, m0) = both(where, 1 + step), both(where, 1 - step)
        out[f"ce_{where}"], out[f"mmd_{where}"] = (c1 - c0) / (2 * step), (m1 - m0) / (2 * step)
    net.eval()
    return out


def test_in_units_of_its_layer_it_is_itmcs(batches: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """sum_batches |s + t| over its L2 norm in the layer, squared so that a plan can add it up."""
    net = Net().double().eval()
    read = [[reading(net, b, c) for c in range(WIDTH)] for b in batches]
    expected = np.mean([[abs(r["ce_s"] + 0.7 * r["mmd_t"]) for r in one] for one in read], 0)
    couplings = graph.find(net, batches[0][0], verify=False)
    score = Transfer(batches, Losses("paper", 0.7), "head", per_layer=True)
    found = additive(score(net, couplings))["inner"].numpy()
    assert found == pytest.approx(expected**2 / (expected**2).sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "frozen"),
    [("paper", False), ("paper", True), ("code", False), ("max", False), ("source", False)],
)
def test_score_is_its_equation(
    variant: str, frozen: bool, batches: list[tuple[Tensor, Tensor, Tensor]]
) -> None:
    net = Net().double().eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    read = [[reading(net, b, c, frozen) for c in range(WIDTH)] for b in batches]
    weight = 0.7
    expected = np.zeros(WIDTH)
    if variant in ("paper", "source"):
        share = weight if variant == "paper" else 0.0
        for one in read:
            expected += [abs(r["ce_s"] + share * r["mmd_t"]) / len(read) for r in one]
    else:
        g = 2 / (1 + math.exp(-10 * 1 / 10)) - 1
        assert pytest.approx(g) == CODE_WEIGHT
        s = np.mean([[abs(r["ce_s"] + g * r["mmd_s"]) for r in one] for one in read], 0)
        t = np.mean([[abs(g * r["mmd_t"]) for r in one] for one in read], 0)
        pick = np.minimum if variant == "code" else np.maximum
        expected = pick(s / np.sqrt((s**2).sum()), t / np.sqrt((t**2).sum()))
    net.load_state_dict(state)
    couplings = graph.find(net, batches[0][0], verify=False)
    combine: Any = {"code": "min", "max": "max"}.get(variant, "sum")
    found = Transfer(batches, Losses(variant, weight), "head", combine, frozen=frozen)(net, couplings)
    assert found["inner"].numpy() == pytest.approx(expected, rel=1e-5, abs=1e-10)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not net.training
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_signs_count_before_the_absolute_value(batches: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """A channel that helps one loss as much as it harms the other is worth nothing: the difference to the code."""
    net = Net().double().eval()
    couplings = graph.find(net, batches[0][0], verify=False)

    def opposite(source: Any, target: Any) -> tuple[Tensor, Tensor]:
        return source.logits.square().sum(), -target.logits.square().sum()

    images, labels, _ = batches[0]
    same = [(images, labels, images)]
    assert float(Transfer(same, opposite, "head")(net, couplings)["inner"].max()) < 1e-10

    def equal(source: Any, target: Any) -> tuple[Tensor, Tensor]:
        return source.logits.square().sum(), target.logits.square().sum()

    assert float(Transfer(same, equal, "head")(net, couplings)["inner"].min()) > 1e-3


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_source_images_count_as_their_class_does(variant: str) -> None:
    """A partial target: sum_i a_i CE_i and || sum_i a_i phi(s_i) - mean_j phi(t_j) ||^2, a_i = w_yi / sum w_y."""
    g = torch.Generator().manual_seed(7)
    s, t = torch.randn(6, 4, generator=g).double(), torch.randn(5, 4, generator=g).double()
    labels, w = torch.tensor([0, 1, 2, 0, 1, 3]), torch.tensor([2.0, 1.5, 0.5, 0.0])
    losses = Losses(variant, 0.7, w)
    found = losses(Pass(s, s, s, labels), Pass(t, t, t))
    a = w[labels].double().numpy()
    a = a / a.sum()
    each = [math.log(np.exp(z).sum()) - z[y] for z, y in zip(s.numpy(), labels, strict=True)]
    rows = torch.cat([s, t]).numpy()
    mean = float(np.mean([((x - y) ** 2).sum() for x in rows for y in rows]))

    def k(x: Any, y: Any) -> float:
        return sum(math.exp(-((x - y) ** 2).sum() / (2 * h * mean)) for h in (0.125, 0.25, 0.5, 1, 2))

    own = [(a[i] * a[j], k(rows[i], rows[j])) for i in range(6) for j in range(6) if i != j]
    same = sum(p * v for p, v in own) / sum(p for p, _ in own)
    other = np.mean([k(x, y) for i, x in enumerate(t.numpy()) for j, y in enumerate(t.numpy()) if i != j])
    far = same + other - 2 * sum(a[i] * k(rows[i], y) for i in range(6) for y in t.numpy()) / 5
    ce = float((a * np.array(each)).sum())
    expected = (ce, 0.7 * far) if variant == "paper" else (ce + CODE_WEIGHT * far, CODE_WEIGHT * far)
    assert [float(v) for v in found] == pytest.approx(expected, rel=1e-5)


def test_a_partial_target_says_how_much_each_class_counts(
    planted: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = planted()
    assert job.shares(compares=True) is None
    again = planted()
    again.partial = True
    sure = 8.0 * torch.eye(4)[torch.tensor([0, 0, 0, 1])]
    monkeypatch.setattr(inference, "logits_of", lambda *_, **__: sure)
    weights = again.shares(compares=True)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([3.0, 1.0, 0.0, 0.0]), atol=1e-2, rtol=0)
    assert weights[2:].tolist() == [0.0, 0.0]  # a class that nothing asks for
    plain = again.shares(compares=False)
    assert plain is not None
    torch.testing.assert_close(plain, class_weights(sure))
    seen: list[Any] = []

    def spy(self: Transfer, *_: Any) -> dict[str, Tensor]:
        assert isinstance(self.losses, Losses)
        seen.append(self.losses.classes)
        return {}

    monkeypatch.setattr(Transfer, "__call__", spy)
    for one in (job, again):
        TCP().score(one, parts.couplings(one), 0.5)
    assert seen[0] is None
    torch.testing.assert_close(seen[1], weights)
    TCP(variant="source", weight=0.0).score(again, parts.couplings(again), 0.5)
    assert seen[2] is None  # without adaptation nothing is known of the target
    again.options = replace(again.options, objective="dan")  # which weighs classes as it learns
    TCP(variant="source", weight=0.0).score(again, parts.couplings(again), 0.5)
    torch.testing.assert_close(seen[3], weights)


def test_ramp() -> None:
    assert [beta(i, 8) for i in (1, 4, 8)] == pytest.approx(
        [4 / (1 + math.exp(-x)) - 2 for x in (1 / 8, 0.5, 1)]
    )
    assert beta(8, 8) == pytest.approx(0.924, abs=1e-3)


def test_the_ramp_reaches_score_and_training(
    planted: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iteration i of n: one weight in the score and in the fine-tune after it."""
    asked: list[tuple[str, float]] = []
    job = planted(iterations=3, recover=3.0)
    score, objective = TCP.score, TCP.objective

    def spy_score(self: TCP, job: Job, found: Any, weight: float) -> Any:
        asked.append(("score", weight))
        return score(self, job, found, weight)

    def spy_objective(self: TCP, job: Job, weight: float) -> Any:
        asked.append(("train", weight))
        made = objective(self, job, weight)
        assert made.knobs.weight == weight
        return made

    monkeypatch.setattr(TCP, "score", spy_score)
    monkeypatch.setattr(TCP, "objective", spy_objective)
    monkeypatch.setattr(work, "learn", lambda *_, **__: None)
    TCP()(job)
    assert asked == [(what, beta(i, 3)) for i in (1, 2, 3) for what in ("score", "train")]


def test_channels_a_step_say_how_many_cuts(planted: Callable[..., Job]) -> None:
    job = planted()
    TCP(channels=4)(job)  # 16 of 32 go
    assert len(job.trace) == 4
    assert [sum(c.width - len(c.keep) for c in plan.cuts) for plan in job.plans] == [4, 4, 4, 4]
    assert len(job.plans) == 4


def test_the_base_is_counted(planted: Callable[..., Job]) -> None:
    job = planted(recover=2.0, iterations=2)
    TCP(base=2.0, batches=1)(job)
    assert [entry.get("images_before") for entry in job.trace] == [96, None]


def test_without_steps_it_takes_several(planted: Callable[..., Job]) -> None:
    job = planted()
    TCP(batches=1)(job)
    assert len(job.trace) == 8
    again = planted(iterations=2)
    TCP(batches=1)(again)
    assert len(again.trace) == 2


def test_what_it_learns(planted: Callable[..., Job]) -> None:
    job = planted()
    assert [type(TCP(weight=w).objective(job, 0.5)).__name__ for w in (1.0, 0.0)] == ["DAN", "Source"]
    assert TCP(distill=True).objective(job, 0.5).needs.teacher
    named = TCP().objective(planted(objective="dann"), 0.5)
    assert type(named).__name__ == "DANN"
    found = parts.couplings(job)
    given = TCP(variant="given").score(planted(score="random"), found, 0.5)
    assert torch.equal(given["first"], Random()(job.network.module, found)["first"])


@pytest.mark.parametrize("knobs", [TCP(batches=2), TCP(batches=2, variant="code")])
def test_a_plan_is_given_squares_in_the_same_order(knobs: TCP, planted: Callable[..., Job]) -> None:
    job = planted()
    assert job.source is not None
    found = parts.couplings(job)
    pairs = Pairs(job.source, job.target, job.network.preprocess, 2, job.options.batch, job.options.seed)
    combine: Any = "min" if knobs.variant == "code" else "sum"
    plain = Transfer(pairs, Losses(knobs.variant, 0.5), job.network.classifier, combine)
    for root, score in plain(job.network.module, found).items():
        scored = knobs.score(job, found, 0.5)[root]
        assert torch.equal(scored, score.square())
        assert torch.equal(scored.argsort(stable=True), score.argsort(stable=True))


def test_attention_used_as_a_function_is_scored() -> None:
    """What no gate reaches is read from the weights that make it: of each domain its own part, as with gates."""
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(16, 8, 2, 4, 32, 64, num_classes=3).eval()
    nn.init.normal_(net.heads.head.weight)
    batch = (torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]), torch.randn(4, 3, 16, 16))
    couplings = graph.find(net, batch[0], verify=False)
    scores = {
        v: Transfer([batch], Losses(v, 1.0), "heads.head", "sum" if v != "code" else "min")(net, couplings)
        for v in ("paper", "source", "code")
    }
    assert all(
        float(s.max()) > 0 and bool(s.isfinite().all()) for one in scores.values() for s in one.values()
    )
    assert all(not torch.equal(scores["paper"][c.root], scores["source"][c.root]) for c in couplings)


def test_one_step_that_was_asked_for_is_one_cut(planted: Callable[..., Job]) -> None:
    job = planted(iterations=1)
    TCP(batches=1)(job)
    assert len(job.trace) == 1
