"""How accurate is a network on images without labels? Estimates, each with an interval; never a measurement.

What is known of labelled validation images of the source (`Statistics`) is small enough for a file that may leave the
cloud when the images may not: scores and whether each answer was right. numpy only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError

FORMAT = 1
FEWEST = 20  # labelled images that anything is said from
KEPT = 1000  # scores in a file
ROUNDS = 400  # of the bootstrap
Array = NDArray[Any]


@dataclass(frozen=True)
class Statistics:
    """A network on labelled validation images of its source.

    temperature: the one that calibrates it. accuracy in 0..1 and prior (K,), the classes' shares, are of all `images`.
    scores (n,): calibrated confidence, and right (n,): whether the answer was, of up to 1,000 images evenly spaced in
    confidence. model: fingerprint of the network's weights, "" where it is not known.
    """

    temperature: float
    accuracy: float
    prior: tuple[float, ...]
    classes: tuple[str, ...]
    images: int
    scores: Array
    right: Array
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of from_json."""
        facts = {"format": FORMAT, **asdict(self), "prior": list(self.prior), "classes": list(self.classes)}
        facts["scores"] = [round(float(s), 7) for s in self.scores]
        return {**facts, "right": "".join("1" if r else "0" for r in self.right)}

    @classmethod
    def from_json(cls, facts: Any, where: str = "statistics") -> Statistics:
        """Read what to_json wrote; DataError when it is something else."""
        try:
            if facts["format"] != FORMAT:
                raise ValueError(f"format {facts['format']}, this edgeprune reads {FORMAT}")
            scores = np.asarray(facts["scores"], np.float64)
            right = np.array([{"1": True, "0": False}[c] for c in facts["right"]])
            if scores.ndim != 1 or len(scores) < 2 or len(scores) != len(right):
                raise ValueError(f"{len(scores)} scores, {len(right)} answers")
            names, prior = tuple(map(str, facts["classes"])), tuple(map(float, facts["prior"]))
            numbers = float(facts["temperature"]), float(facts["accuracy"])
            model = str(facts.get("model", ""))
            return cls(*numbers, prior, names, int(facts["images"]), scores, right, model)
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(
                f"{where}: not the statistics of a network ({err}); "
                "expected what edgeprune adapt --export-stats wrote"
            ) from err


def read(path: Path) -> Statistics:
    """Read a statistics file; DataError when there is none, or it is something else."""
    try:
        facts = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"--stats {path}: no such file; write it with edgeprune adapt --export-stats"
        ) from None
    except (OSError, ValueError) as err:
        raise DataError(
            f"--stats {path}: not JSON ({err}); write it with edgeprune adapt --export-stats"
        ) from err
    return Statistics.from_json(facts, f"--stats {path}")


def measure(logits: Array, labels: Array, classes: Sequence[str]) -> Statistics:
    """Statistics of logits (N, K) and labels (N,) in 0..K-1; DataError for fewer than FEWEST images."""
    if len(labels) < FEWEST:
        raise DataError(
            f"{len(labels)} labelled images: too few to say how sure is sure; expected at least {FEWEST}"
        )
    scale = temperature(logits, labels)
    score, right = confidence(logits, scale), logits.argmax(1) == labels
    order = np.argsort(score, kind="stable")
    kept = order[np.linspace(0, len(order) - 1, min(KEPT, len(order))).round().astype(int)]
    prior = np.bincount(labels, minlength=logits.shape[1]) / len(labels)
    facts = (tuple(prior.tolist()), tuple(classes), len(labels))
    return Statistics(scale, float(right.mean()), *facts, score[kept], right[kept])


def temperature(logits: Array, labels: Array) -> float:
    """The T in 0.05..20 for which softmax(logits / T) has the least negative log-likelihood (Guo et al., ICML 2017).

    The likelihood is convex in 1/T, so its slope is bisected. Where no answer is wrong it would go on for ever, and
    nothing says that the network is surer than it sounds: T is at least 1 there, which is ours.
    """
    z = logits.astype(np.float64)
    own = z[np.arange(len(labels)), labels]
    low, high = 1 / 20, 1.0 if bool((z.argmax(1) == labels).all()) else 1 / 0.05
    for _ in range(60):
        inverse = (low * high) ** 0.5
        slope = float(((softmax(z * inverse) * z).sum(1) - own).mean())
        low, high = (low, inverse) if slope > 0 else (inverse, high)
    return float(1 / (low * high) ** 0.5)


def softmax(z: Array) -> Array:
    """Rows (N, K) as shares."""
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def confidence(logits: Array, scale: float) -> Array:
    """The largest of softmax(logits / T), (N,)."""
    return np.asarray(softmax(logits.astype(np.float64) / scale).max(1))


def threshold(scores: Array, right: Array) -> float:
    """The score below which as many validation images lie as were answered wrongly (Garg et al., ICLR 2022, eq. 3)."""
    wrong = int(len(right) - np.count_nonzero(right))
    return float(np.sort(scores)[wrong]) if wrong < len(scores) else float("inf")


def atc(scores: Array, right: Array, target: Array) -> float:
    """Average thresholded confidence: the share of target scores (M,) at or above the threshold."""
    return float((target >= threshold(scores, right)).mean())


def doc(scores: Array, right: Array, target: Array) -> float:
    """Difference of confidences: the accuracy less what mean confidence lost (Guillory et al., ICCV 2021), in 0..1."""
    return float(np.clip(right.mean() - (scores.mean() - target.mean()), 0, 1))


@dataclass(frozen=True)
class Estimate:
    """An estimate of accuracy on unlabelled images, in 0..1, and between what it likely lies; None: not known.

    accuracy_low, accuracy_high: 95% of the bootstrap, of ATC and DoC together, so that their disagreement counts.
    share_agreeing: images on which the network says what it said before. accuracy_change_at_most: what follows from it
    for images like these, at 95% (`at_most`).
    """

    method: str
    images: int
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracy_atc: float | None = None
    accuracy_doc: float | None = None
    share_agreeing: float | None = None
    accuracy_change_at_most: float | None = None
    note: str = "an estimate from confidences, without labels: not a measurement"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not known is left out."""
        return {k: v for k, v in asdict(self).items() if v is not None}


def _resamples(count: int, random: np.random.Generator) -> Array:
    return random.integers(0, count, (ROUNDS, count))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def at_most(share: float, images: int) -> float:
    """The largest share in a population, at 95% one-sided, of which `share` was seen in a sample of `images`.

    Wilson's score bound (JASA 1927).
    """
    z = 1.6449
    middle = share + z * z / (2 * images)
    spread = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    return max(share, min(1.0, (middle + spread) / (1 + z * z / images)))


def estimate(known: Statistics, logits: Array, seed: int = 0) -> Estimate:
    """Accuracy on target logits (M, K) of the network that `known` was measured on: ATC, with DoC as second opinion.

    Temperature-scaled maximum probability as the score (Garg et al., ICLR 2022). The interval is ours: the bootstrap's,
    and down to what the validation images, which may be few, leave open of their own accuracy (`at_most`).
    """
    target = confidence(logits, known.temperature)
    parts = known.scores, known.right
    first, second = atc(*parts, target), doc(*parts, target)
    random = np.random.default_rng(seed)
    found: tuple[list[float], list[float]] = ([], [])
    for here, there in zip(
        _resamples(len(known.scores), random), _resamples(len(target), random), strict=True
    ):
        for rule, values in zip((atc, doc), found, strict=True):
            values.append(rule(known.scores[here], known.right[here], target[there]))
    ends = [_interval(values) for values in found]
    wrong = 1 - known.accuracy
    unseen = at_most(wrong, known.images) - wrong
    low, high = min(*(e[0] for e in ends), first - unseen, second - unseen), max(e[1] for e in ends)
    low = max(0.0, low)
    return Estimate("atc", len(logits), first, min(low, first), max(high, first), first, second)


def adapted(known: Statistics, before: Array, after: Array, seed: int = 0) -> Estimate:
    """Bounds for a network that has changed since `known` was measured: logits (M, K) before and after.

    Where both agree, the new answer is as right as the old; where not, it can be right only if the old one was wrong.
    Which old answers are right is ATC's guess for each image. Its confidence after adaptation is no guide, since
    adaptation makes it sure. The bounds are ours; bootstrap as in `estimate`.
    """
    base = estimate(known, before, seed)
    agrees = before.argmax(1) == after.argmax(1)
    score = confidence(before, known.temperature)
    random = np.random.default_rng(seed)
    lows, highs = [], []
    for here, there in zip(
        _resamples(len(known.scores), random), _resamples(len(score), random), strict=True
    ):
        right = score[there] >= threshold(known.scores[here], known.right[here])
        lows.append(float((agrees[there] & right).mean()))
        highs.append(float((agrees[there] == right).mean()))
    share = float(agrees.mean())
    low, high = _interval(lows)[0], _interval(highs)[1]
    note = f"bounds without labels: before, {100 * (base.accuracy or 0):.1f}% were estimated"
    moved = at_most(1 - share, len(before))
    rest = {"share_agreeing": share, "accuracy_change_at_most": moved, "note": note}
    return Estimate("atc and agreement", len(before), None, low, high, **rest)  # type: ignore[arg-type]


def doubted(now: Estimate, bounds: Estimate) -> Estimate:
    """The estimate from confidences after adapting, whose interval takes in the bounds from those before (`adapted`).

    Adapting makes a network sure of what it answers, so confidences after it promise too much; those before cannot say
    what was gained. Between the two is where accuracy should be. Ours.
    """
    low, high = (
        choose([v for v in ends if v is not None])
        for choose, ends in (
            (min, (now.accuracy_low, bounds.accuracy_low)),
            (max, (now.accuracy_high, bounds.accuracy_high)),
        )
    )
    note = "an estimate from confidences after adapting, which promise too much, down to the bounds from those before"
    rest = {
        "share_agreeing": bounds.share_agreeing,
        "accuracy_change_at_most": bounds.accuracy_change_at_most,
    }
    return replace(now, accuracy_low=low, accuracy_high=high, note=note, **rest)  # type: ignore[arg-type]


def carried(known: Mapping[str, Any] | None, share: float, images: int) -> Estimate:
    """After a change that kept `share` of the answers on some images: the bounds of a result's `estimate`, widened by
    the rest.

    Without bounds, how far accuracy can have moved is all that is known.
    """
    low, high = ((known or {}).get(f"accuracy_{end}") for end in ("low", "high"))
    rest = at_most(1 - share, images)
    if low is None or high is None:
        note = "nothing labelled is known: only how far accuracy can have moved since before"
        return Estimate("agreement", images, share_agreeing=share, accuracy_change_at_most=rest, note=note)
    return Estimate(
        "estimate and agreement",
        images,
        None,
        max(0.0, low - rest),
        min(1.0, high + rest),
        share_agreeing=share,
        accuracy_change_at_most=rest,
        note="bounds without labels: the estimate for the network before, widened by what changed",
    )


def agreement(before: Array, after: Array) -> Estimate:
    """What two networks' logits (M, K) on the same images say: accuracy moved at most by the share that differs."""
    return carried(None, float((before.argmax(1) == after.argmax(1)).mean()), len(before))
