"""Estimates against plain readings of the papers, and against accuracies that are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from edgeprune import estimate
from edgeprune.errors import DataError
from edgeprune.estimate import Statistics

NAMES = ("a", "b", "c")


def drawn(count: int, strength: float, seed: int, scale: float = 1.0) -> tuple[Any, Any]:
    """Logits that are calibrated at temperature `scale`: each label is drawn from the softmax itself."""
    random = np.random.default_rng(seed)
    z = random.normal(0, strength, (count, 3))
    p = estimate.softmax(z)
    labels = np.array([random.choice(3, p=row) for row in p])
    return z * scale, labels


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_temperature_has_the_least_loss(scale: float) -> None:
    z, labels = drawn(3000, 2.0, 0, scale)

    def loss(t: float) -> float:
        return float(-np.log(estimate.softmax(z / t)[np.arange(len(z)), labels]).mean())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x
    assert estimate.temperature(z, labels) == pytest.approx(best, rel=1e-3)
    assert estimate.temperature(z, labels) == pytest.approx(scale, rel=0.15)


def test_a_network_that_is_always_right_is_not_called_surer_than_it_sounds() -> None:
    assert estimate.temperature(np.eye(3) * 5, np.arange(3)) == pytest.approx(1.0, rel=1e-3)
    labels = np.arange(24) % 3
    known = estimate.measure(np.eye(3)[labels] * 5, labels, NAMES[:3])
    found = estimate.estimate(known, np.eye(3)[labels] * 5)
    assert found.accuracy == 1.0
    assert found.accuracy_low == pytest.approx(1 - estimate.at_most(0.0, 24))  # few images say little


def test_what_is_said_after_adapting_reaches_down_to_the_bounds_from_before() -> None:
    z, labels = drawn(1500, 2.0, 0)
    before, _ = drawn(1000, 1.0, 1)
    after = 8 * before
    after[:300, 0] += 20
    bounds = estimate.adapted(estimate.measure(z, labels, NAMES), before, after)
    now = estimate.estimate(estimate.measure(8 * z, labels, NAMES), after)
    found = estimate.doubted(now, bounds)
    assert (found.accuracy, found.method) == (now.accuracy, "atc")
    assert found.accuracy_low == min(now.accuracy_low or 1, bounds.accuracy_low or 1)
    assert found.accuracy_high == max(now.accuracy_high or 0, bounds.accuracy_high or 0)
    assert found.share_agreeing == bounds.share_agreeing
    assert "promise too much" in found.note


def test_threshold_is_that_of_the_sweep() -> None:
    """Garg et al.: the t for which wrong answers kept and right ones dropped are equally many."""
    random = np.random.default_rng(1)
    scores = random.permutation(np.linspace(0.3, 1, 200))
    right = random.random(200) < scores
    t = estimate.threshold(scores, right)
    kept = scores >= t
    assert np.count_nonzero(kept & ~right) == np.count_nonzero(~kept & right)
    assert estimate.atc(scores, right, scores) == right.mean()
    assert estimate.threshold(scores, np.ones(200, bool)) == scores.min()
    assert estimate.atc(scores, np.zeros(200, bool), scores) == 0


def test_difference_of_confidences() -> None:
    scores, right = np.array([0.5, 0.7, 0.9, 0.9]), np.array([False, True, True, True])
    assert estimate.doc(scores, right, np.array([0.6, 0.6])) == pytest.approx(0.75 - (0.75 - 0.6))
    assert estimate.doc(scores, right, np.zeros(3)) == 0


@pytest.mark.parametrize("seed", range(3))
def test_estimate_covers_the_accuracy_under_a_shift_that_keeps_calibration(seed: int) -> None:
    z, labels = drawn(1500, 3.0, seed, 2.0)
    known = estimate.measure(z, labels, NAMES)
    target, answers = drawn(1000, 1.2, 100 + seed, 2.0)  # less sure, still calibrated
    accuracy = float((target.argmax(1) == answers).mean())
    assert known.accuracy > accuracy + 0.1
    found = estimate.estimate(known, target)
    assert found.accuracy is not None
    assert found.accuracy_low is not None
    assert found.accuracy_high is not None
    assert found.accuracy_low - 0.03 <= accuracy <= found.accuracy_high + 0.03
    assert found.accuracy_low <= found.accuracy <= found.accuracy_high
    assert 0.02 < found.accuracy_high - found.accuracy_low < 0.3
    assert found.accuracy_doc == pytest.approx(accuracy, abs=0.05)
    assert found == estimate.estimate(known, target)


def test_bounds_after_a_change_hold_the_accuracy() -> None:
    z, labels = drawn(1500, 2.0, 0)
    known = estimate.measure(z, labels, NAMES)
    before, answers = drawn(1000, 1.5, 1)
    after = before.copy()
    after[:300, 0] += 2
    accuracy = float((after.argmax(1) == answers).mean())
    found = estimate.adapted(known, before, after)
    assert found.accuracy is None
    assert found.accuracy_low is not None
    assert found.accuracy_high is not None
    assert found.accuracy_low < accuracy < found.accuracy_high
    moved = float((before.argmax(1) != after.argmax(1)).mean())
    assert found.accuracy_change_at_most == pytest.approx(estimate.at_most(moved, 1000))
    same = estimate.adapted(known, before, 100 * before)  # surer, and no answer changed: the bounds meet
    plain = estimate.estimate(known, before)
    assert same.accuracy_low is not None
    assert plain.accuracy is not None
    assert same.accuracy_low < plain.accuracy < (same.accuracy_high or 0)
    assert (same.accuracy_high or 1) - same.accuracy_low < 0.15


def test_agreement_alone_says_how_far_accuracy_moved() -> None:
    before, after = np.eye(4)[[0, 1, 2, 3]], np.eye(4)[[0, 1, 2, 0]]
    found = estimate.agreement(before, after).to_json()
    assert found["share_agreeing"] == 0.75
    assert 0.25 < found["accuracy_change_at_most"] < 1
    assert "accuracy" not in found


@given(st.integers(1, 2000), st.floats(0, 1))
def test_what_was_seen_on_few_images_says_little(images: int, share: float) -> None:
    """Wilson's bound solves (p - s)^2 = z^2 p (1 - p) / n for the true share p."""
    p = estimate.at_most(share, images)
    assert p >= share
    assert p >= estimate.at_most(share, 2 * images) - 1e-12
    if p < 1:
        assert (p - share) ** 2 == pytest.approx(1.6449**2 * p * (1 - p) / images, rel=1e-6, abs=1e-12)


def test_an_estimate_is_carried_over_a_cut() -> None:
    said = estimate.carried({"accuracy_low": 0.7, "accuracy_high": 0.98}, 0.95, 500).to_json()
    assert said["accuracy_low"] == pytest.approx(0.7 - estimate.at_most(0.05, 500))
    assert said["accuracy_high"] == 1
    alone = estimate.carried({"method": "agreement"}, 0.95, 500).to_json()
    assert "accuracy_low" not in alone
    assert alone["accuracy_change_at_most"] == pytest.approx(estimate.at_most(0.05, 500))


def test_a_file_says_the_same_and_is_small(tmp_path: Path) -> None:
    z, labels = drawn(5000, 2.0, 0)
    known = estimate.measure(z, labels, NAMES)
    file = tmp_path / "stats.json"
    file.write_text(json.dumps(known.to_json()))
    assert file.stat().st_size < 20_000
    again = estimate.read(file)
    target, _ = drawn(500, 1.0, 5)
    one, other = estimate.estimate(known, target), estimate.estimate(again, target)
    assert one.accuracy == pytest.approx(other.accuracy)
    assert one.accuracy_doc == pytest.approx(other.accuracy_doc, abs=1e-6)
    assert sum(known.prior) == pytest.approx(1)
    assert known.right.mean() == pytest.approx(
        known.accuracy, abs=0.02
    )  # evenly spaced, so still representative
    assert (again.images, again.classes, len(again.scores)) == (5000, NAMES, 1000)


def test_helpful_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file; write it with edgeprune adapt --export-stats"):
        estimate.read(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x.json: not JSON"):
        estimate.read(tmp_path / "x.json")
    good = estimate.measure(*drawn(50, 1.0, 0), NAMES).to_json()
    for change in ({"format": 9}, {"scores": [0.1]}, {"right": "01x"}, {"classes": None}):
        with pytest.raises(DataError, match=r"not the statistics of a network .* --export-stats wrote"):
            Statistics.from_json({**good, **change})
    with pytest.raises(DataError, match="19 labelled images: too few"):
        estimate.measure(*drawn(19, 1.0, 0), NAMES)
