import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune import validate
from edgeprune.data.pixels import Pixels
from edgeprune.errors import UsageError
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.select import (
    Choice,
    choose,
    chooser_of,
    class_ami,
    deep_embedded_risk,
    soft_neighbourhood_density,
    surest,
    validators,
)

Array = NDArray[np.float64]


def entropy(p: Array) -> float:
    return float(-sum(q * math.log(q) for q in p.tolist() if q > 0))


def density(p: Array) -> float:
    v = p / np.linalg.norm(p, axis=1, keepdims=True)
    found = []
    for i in range(len(v)):
        near = np.array([math.exp(v[i] @ v[j] / 0.05) for j in range(len(v)) if j != i])
        found.append(entropy(near / near.sum()))
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("count", "classes", "scale"), [(3, 2, 1.0), (40, 5, 3.0), (6, 30, 2.0), (100, 3, 9.0)]
)
def test_formulas(count: int, classes: int, scale: float) -> None:
    z = np.random.default_rng(count).normal(0, scale, (count, classes)).astype(np.float32)
    p = np.exp(z.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    found = validators(torch.zeros(count, 4), torch.tensor(z))
    conditional = float(np.mean([entropy(row) for row in p]))
    singular = np.sqrt(np.linalg.eigvalsh(p @ p.T if count < classes else p.T @ p).clip(0))
    shares = np.bincount(p.argmax(1), minlength=classes) / count
    assert found["information"] == pytest.approx(entropy(p.mean(0)) - conditional, abs=1e-8)
    assert found["entropy"] == pytest.approx(-conditional, abs=1e-8)
    assert found["nuclear"] == pytest.approx(
        singular.sum() / math.sqrt(count * min(count, classes)), abs=1e-6
    )
    assert found["snd"] == pytest.approx(density(p), abs=1e-7)
    assert found["histogram"] == pytest.approx(entropy(shares) / math.log(classes), abs=1e-9)


def test_density_takes_evenly_spaced_rows_and_needs_three() -> None:
    p = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
    rows = [round(i * 49 / 9) for i in range(10)]
    assert soft_neighbourhood_density(p, most=10) == pytest.approx(density(p[rows].numpy()))
    assert soft_neighbourhood_density(p[:2]) == 0


def test_sure_and_balanced_is_best_of_all() -> None:
    features = torch.zeros(12, 2)
    good = validators(features, torch.eye(4).repeat(3, 1) * 50)
    assert good["information"] == pytest.approx(math.log(4))
    assert good["nuclear"] == pytest.approx(1)
    assert good["histogram"] == pytest.approx(1)
    one = validators(features, torch.tensor([50.0, 0, 0, 0]).repeat(12, 1))
    assert one["information"] == pytest.approx(0, abs=1e-9)
    assert one["histogram"] == 0
    assert one["entropy"] == pytest.approx(good["entropy"], abs=1e-9)  # why it does not choose


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_score_worst(bad: float) -> None:
    logits = 9 * torch.eye(3).repeat(3, 1) + torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    fine = validators(logits.clone(), logits)
    logits[4, 1] = bad
    worst = validators(logits.clone(), logits)
    assert all(math.isfinite(v) for v in worst.values())
    assert all(worst[name] < fine[name] for name in fine)


def test_one_class_is_no_division_by_zero() -> None:
    assert validators(torch.zeros(4, 2), torch.zeros(4, 1))["histogram"] == 0


def curve(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"information": i, "histogram": h, "snd": -i} for i, h in pairs]


def test_choose() -> None:
    assert choose(curve((0.1, 0.9), (0.5, 0.9), (0.3, 0.8))) == Choice(1, False)
    assert choose(curve((0.1, 0.9), (0.5, 0.9), (0.3, 0.8)), "snd") == Choice(0, False)
    assert choose(curve((0.5, 0.9), (0.5, 0.9))) == Choice(1, False)  # a tie goes to the later
    assert choose(curve((0.2, 0.5))) == Choice(0, False)


def test_choose_passes_over_a_collapse() -> None:
    assert choose(curve((0.1, 0.9), (0.2, 0.8), (0.9, 0.53))) == Choice(1, True)
    assert choose(curve((0.1, 0.9), (0.2, 0.8), (0.9, 0.55))) == Choice(2, False)  # 0.6 of 0.9 is the line
    assert choose(curve((0.1, 0.9), (0.9, 0.1), (0.3, 0.9))) == Choice(2, False)  # it came back
    assert choose(curve((0.1, 0.0), (0.2, 0.0))) == Choice(1, False)  # nothing left to lose


@pytest.mark.parametrize("chooser", ["mixval", "snd", "information"])
@pytest.mark.parametrize("partial", [False, True])
def test_a_degenerate_start_gives_way_to_what_came_later(chooser: str, partial: bool) -> None:
    """One class predicted before training: mixval and snd like that, but a later step shows what it is."""
    rows = [(1.0, 0.016), (0.7, 0.9), (0.8, 1.0)]
    curves = [{"mixval": v, "snd": v, "information": v, "histogram": h} for v, h in rows]
    assert choose(curves, chooser, partial=partial) == Choice(2, False)
    assert choose(curves[:1], chooser, partial=partial) == Choice(0, False)
    assert choose([curves[0], curves[2], curves[0]], chooser, partial=partial) == Choice(1, True)


def test_the_alarm_goes_by_the_largest_histogram_so_far() -> None:
    assert choose(curve((0.1, 0.6), (0.2, 1.0), (0.9, 0.55))) == Choice(1, True)  # 0.55 is most of 0.6 only
    ran = curve((0.1, 0.5), (0.2, 1.0), (0.3, 0.4))
    ran[1]["drift"] = 9.0  # what ran away raises no bar
    assert choose(ran) == Choice(2, False)


def test_no_alarm_for_a_partial_target_of_two_even_classes() -> None:
    for classes in (5, 31, 345, 1000):
        two = math.log(2) / math.log(classes)
        for before in (two, 0.9):
            rows = [{"mixval": 0.5, "histogram": h} for h in (before, 1.0, two)]
            assert choose(rows, "mixval", partial=True, classes=classes) == Choice(2, False), classes
        one = [{"mixval": 0.5, "histogram": h} for h in (0.9, 1.0, 0.4 * two)]
        assert choose(one, "mixval", partial=True, classes=classes) == Choice(1, True), classes


def test_the_surest_of_a_partial_target_that_has_not_collapsed() -> None:
    rows = [(-0.9, 0.9), (-0.7, 0.6), (-0.5, 0.5), (-0.1, 0.05)]
    scores = [{"entropy": e, "histogram": h} for e, h in rows]
    assert surest(scores, 7) == 2
    assert surest([*scores[:2], scores[1]], 7) == 2  # a tie goes to the last, which is the network's own
    assert surest(scores[3:], 7) == 0


def test_one_of_two_classes_may_be_rare() -> None:
    """Nine of ten images without a defect are no collapse; all of them are."""

    def entropy(share: float) -> float:
        return -share * math.log2(share) - (1 - share) * math.log2(1 - share)

    rare, none = curve((0.1, 1.0), (0.2, entropy(0.05))), curve((0.1, 1.0), (0.2, entropy(0.01)))
    assert choose(rare, classes=2) == Choice(1, False)
    assert choose(none, classes=2) == Choice(0, True)
    assert choose(rare, classes=7) == Choice(0, True)
    fewer = [{"mixval": 0.5, **row} for row in rare]
    assert choose(fewer, classes=2, partial=True) == Choice(1, False)


@pytest.mark.parametrize("partial", [False, True])
def test_the_choice_is_the_last_one_or_the_newest(partial: bool) -> None:
    """The loop keeps the weights of the best so far and no others, whatever a later step says of earlier ones."""
    random = np.random.default_rng(0)
    for _ in range(200):
        rows = [
            {"mixval": a, "information": b, "ami": c, "histogram": h, "drift": 4 * d, "source": 0.8 + 0.2 * s}
            for a, b, c, h, d, s in random.random((7, 6)).tolist()
        ]
        for chooser in ("mixval", "rank"):
            chosen = [choose(rows[:n], chooser, partial=partial, held=500).place for n in range(1, 8)]
            assert all(now in (before, n) for n, (before, now) in enumerate(itertools.pairwise(chosen), 1))


def test_gate_drift_and_partial_alarm() -> None:
    def held(*accuracies: float) -> list[dict[str, float]]:
        return [
            {"information": i, "histogram": 0.9, "source": a, "drift": 0.0} for i, a in enumerate(accuracies)
        ]

    assert choose(held(0.9, 0.86, 0.8), held=1000) == Choice(1, False)  # 0.8 lost too much on the source
    assert choose(held(0.9, 0.86, 0.8)) == Choice(2, False), "what is free to forget the source"
    assert choose(held(1.0, 0.9), held=10) == Choice(1, False), "one of ten images is chance"
    assert choose(held(1.0, 0.7), held=10) == Choice(0, False)
    far = [*curve((0.1, 0.9), (0.9, 0.9))]
    far[1]["drift"] = 3.5
    assert choose(far) == Choice(0, True)
    far[1]["drift"] = math.nan
    assert choose(far) == Choice(0, True)
    fewer = [{"mixval": i, "histogram": h} for i, h in enumerate((0.9, 0.5))]
    assert choose(fewer, "mixval") == Choice(0, True)
    assert choose(fewer, "mixval", partial=True) == Choice(1, False)  # classes are expected to go


def test_partial_leaves_diversity_out() -> None:
    both = [
        {"information": 1.0, "mixval": 0.2, "histogram": 0.9},
        {"information": 0.5, "mixval": 0.3, "histogram": 0.9},
    ]
    assert choose(both).place == 0
    assert choose(both, partial=True).place == 1
    assert chooser_of("nuclear", partial=True) == "rank"
    assert chooser_of("entropy", partial=True) == "entropy"
    names = ("mixval", "entropy", "ami", "information")
    noisy = [
        dict(zip((*names, "histogram"), (*row, 0.9), strict=True)) for row in ((3, 1, 1, 1), (2, 2, 2, 0))
    ]
    assert choose(noisy, partial=True).place == 1  # two of three, though one of them would stay


def test_rank_is_the_majority_and_never_goes_back() -> None:
    def votes(*rows: tuple[float, float, float]) -> list[dict[str, float]]:
        return [{"mixval": m, "information": i, "ami": a, "histogram": 0.9} for m, i, a in rows]

    assert choose(votes((0, 0, 0), (1, 1, -1)), "rank").place == 1
    assert choose(votes((0, 0, 0), (-1, 1, -1)), "rank").place == 0
    assert choose(votes((0, 0, 0), (0, 1, -1)), "rank").place == 1  # a tie goes to the later
    rows = votes((1, 2, 3), (2, 3, 1), (3, 1, 2), (2, 2, 2), (1, 2, 3))
    chosen = [choose(rows[:n], "rank").place for n in range(1, 6)]
    assert all(now in (before, n) for n, (before, now) in enumerate(itertools.pairwise(chosen), 1))


def test_helpful_errors() -> None:
    with pytest.raises(UsageError, match=r"--select mixvla: did you mean 'mixval'\?"):
        choose(curve((0.1, 0.9)), "mixvla")
    with pytest.raises(
        UsageError, match=r"--select dev needs held-out source images, dev at least 20: give --source"
    ):
        choose(curve((0.1, 0.9)), "dev")


def test_class_ami() -> None:
    label = torch.arange(40) % 4
    random = torch.Generator().manual_seed(0)
    features = torch.eye(4)[label] * 9 + torch.randn(40, 4, generator=random)
    assert class_ami(features, label, 4) == pytest.approx(1)
    assert class_ami(features, (label + 1) % 4, 4) == pytest.approx(1)  # names do not count
    assert class_ami(features, torch.randint(4, (40,), generator=random), 4) < 0.2
    assert class_ami(features, torch.zeros(40, dtype=torch.int64), 4) == 0
    assert class_ami(features[:7], label[:7], 4) == 0  # fewer than two images a class


def test_deep_embedded_risk_moves_the_weight_to_where_the_target_is() -> None:
    random = torch.Generator().manual_seed(0)
    source, target = torch.randn(400, 3, generator=random), torch.randn(300, 3, generator=random)
    target[:, 0] += 1.5
    wrong = (source[:, 0] > 0.5).double()  # the errors lie where the target is
    risk, plain = deep_embedded_risk(source, wrong, target), float(wrong.mean())
    assert plain < 0.35
    assert risk > plain + 0.15
    assert deep_embedded_risk(source, 1 - wrong, target) < 1 - plain - 0.15
    assert deep_embedded_risk(source, torch.ones(400), target) == pytest.approx(1, abs=0.05)


class Halves(nn.Module):
    """The class is the brighter half: logits 20 (left - right) of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = 20 * torch.eye(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.stack([x[..., :2].mean((1, 2, 3)), x[..., 2:].mean((1, 2, 3))], 1))
        return out


def halves(strength: list[float]) -> tuple[Network, Pixels]:
    net = Network(Halves().eval(), "x", Preprocess((4, 4), (0.5,) * 3, (0.5,) * 3), ("l", "r"), "head")
    pixels = torch.full((len(strength), 4, 4, 3), 100, dtype=torch.uint8)
    for row, value in zip(pixels, strength, strict=True):
        half = row[:, :2] if value > 0 else row[:, 2:]
        half += int(abs(value))
    return net, Pixels(pixels, None, [str(i) for i in range(len(strength))])


def test_mixval_by_hand() -> None:
    """Two classes, two strengths: 0.55 a - 0.45 b has the sign of a unless b is 1.22 times as strong."""
    strength = [60.0, -60, 100, -100, 60, -60, 100, -100]
    net, pixels = halves(strength)
    logits = torch.tensor([[1.0, 0] if s > 0 else [0, 1.0] for s in strength])
    inter, intra = validate.pairs(logits.argmax(1))
    assert len(inter) > 2
    assert len(intra) == 6  # two chains of four
    right = [0.55 * abs(strength[a]) > 0.45 * abs(strength[b]) for a, b in inter.tolist()]
    assert 0 < sum(right) < len(right)
    assert validate.mixval(net, pixels, logits) == pytest.approx((sum(right) / len(right) + 1) / 2)
    assert validate.mixval(net, pixels, torch.tensor([[1.0, 0]]).repeat(8, 1)) == 0  # one class only


def test_pairs_are_bounded_and_the_same_each_time() -> None:
    label = torch.arange(2000) % 3
    inter, intra = validate.pairs(label)
    assert inter.shape == intra.shape == (256, 2)
    assert (label[inter[:, 0]] != label[inter[:, 1]]).all()
    assert (label[intra[:, 0]] == label[intra[:, 1]]).all()
    assert (intra[:, 0] != intra[:, 1]).all()
    state = torch.get_rng_state()
    assert torch.equal(validate.pairs(label)[0], inter)
    assert torch.equal(torch.get_rng_state(), state)


def test_drift_in_standard_deviations() -> None:
    layer = nn.BatchNorm1d(3)
    norm = nn.Sequential(layer)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    origin = validate.statistics(norm)
    assert validate.drift(origin, origin) == 0
    layer.running_mean += torch.tensor([0.0, 2, 5])
    layer.running_var *= 4
    expected = float(np.median([0, 2, 5])) + math.log(2)
    assert validate.drift(origin, validate.statistics(norm)) == pytest.approx(expected)
    layer.running_mean[1] = math.nan
    assert validate.drift(origin, validate.statistics(norm)) > 1e5
    assert validate.drift({}, {}) == 0


def test_validator_scores_source_when_given_and_changes_nothing() -> None:
    net, target = halves([20.0, -20, 100, -100] * 8)
    _, source = halves([30.0, -30, 90, -90] * 8)
    source.labels = torch.tensor([0, 1, 0, 0] * 8)
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    plain, held = validate.Validator(net, target)(), validate.Validator(net, target, source)()
    assert held["source"] == pytest.approx(0.75)
    assert set(held) - set(plain) == {"source", "dev"}
    assert plain.items() <= held.items()
    assert all(torch.equal(before[k], v) for k, v in net.module.state_dict().items())
    assert not net.module.training
