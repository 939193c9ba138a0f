"""Says faster, slower or no change, and only when the samples carry it.

The speed-up is the ratio of the two medians; its interval comes from drawing whole rounds of the interleaved
measurement again, the same rounds for both, so what slowed both at once cancels. An interval that covers 1,
or a ratio within 2% of it, is no change; and so is a difference that the rounds, compared one by one, do not show.
Where the rounds are too few, or those of two sessions too unsteady, it cannot say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.bench.measure import Samples
from edgeprune.bench.statistics import bootstrap_medians, draw_rounds, spread
from edgeprune.errors import DataError

FEWEST_ROUNDS = 8
STEADY = 0.2  # interquartile range over median of rounds that were measured at another time
Word = Literal["faster", "slower", "no change", "cannot say"]


@dataclass(frozen=True)
class Verdict:
    """speedup = median of the baseline / median of the candidate, inside [ci_low, ci_high].

    word: "cannot say" where the measurement is too short or too unsteady for any other. forced: what makes the two
    different quantities, where the user compared them all the same.
    """

    vs: str
    word: Word
    speedup: float
    ci_low: float
    ci_high: float
    confidence: float
    why: str
    forced: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Verdict:
        """Read what `to_json` wrote."""
        return Verdict(**{**data, "forced": tuple(data.get("forced", ()))})

    def __str__(self) -> str:
        return f"{self.word} {self.speedup:.2f}x [{self.ci_low:.2f}, {self.ci_high:.2f}]"


def compare(
    baseline: Samples,
    candidate: Samples,
    *,
    vs: str = "baseline",
    confidence: float = 0.99,
    threshold: float = 1.02,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Compare two runners that one call of `measure` took interleaved.

    vs: the baseline's name, recorded. DataError when their rounds differ, since then nothing pairs them.
    """
    if baseline.rounds != candidate.rounds or not baseline.rounds:
        raise DataError(
            f"{baseline.rounds} rounds against {candidate.rounds}: expected samples of one measurement"
        )
    speedup = float(np.median(baseline.latency_s) / np.median(candidate.latency_s))
    draws = draw_rounds(baseline.rounds, resamples, seed)
    ratios = bootstrap_medians(baseline.latency_s, baseline.round, draws) / bootstrap_medians(
        candidate.latency_s, candidate.round, draws
    )
    low, high = (float(q) for q in np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2]))
    word, why = _word(speedup, low, high, threshold, baseline.rounds)
    if word in ("faster", "slower") and word != _of_rounds(baseline, candidate, draws, confidence):
        word, why = "no change", "the rounds, each taken for itself, do not agree"
    return Verdict(vs, word, speedup, low, high, confidence, why)


def _of_rounds(baseline: Samples, candidate: Samples, draws: NDArray[np.int64], confidence: float) -> Word:
    """What the rounds say, each compared for itself: the side of 1 that the median of their ratios is on.

    On a machine whose cores are shared by many, times have two modes, run or interrupted, and a median over all calls
    falls into one or the other by chance; the ratio within a round of some 60 ms does not.
    """
    ratios = baseline.per_round() / candidate.per_round()
    medians = bootstrap_medians(ratios, np.arange(len(ratios)), draws)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return "faster" if low > 1 else "slower" if high < 1 else "no change"


def compare_saved(
    baseline_ms: Sequence[float],
    candidate_ms: Sequence[float],
    *,
    vs: str,
    p50_ms: tuple[float, float] | None = None,
    confidence: float = 0.99,
    threshold: float = 1.05,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Compare with an earlier measurement by the medians of its rounds, drawn again independently.

    p50_ms: of all calls of either; the speed-up is their ratio, else that of the rounds' medians. Nothing pairs the
    two, so the machine's mood between them is in the ratio: nothing is said below 5%, or where the middle half of one
    side's rounds spreads over more than 20%. Both limits are ours.
    """
    if not baseline_ms or not candidate_ms:
        raise DataError(f"{vs}: the saved result holds no rounds; measure it again, or beside the other")
    sides = []
    for values, offset in ((baseline_ms, 0), (candidate_ms, 1)):
        draws = draw_rounds(len(values), resamples, seed + offset)
        sides.append(bootstrap_medians(np.asarray(values, np.float64), np.arange(len(values)), draws))
    ratios = sides[0] / sides[1]
    low, high = (float(q) for q in np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2]))
    one, other = p50_ms or (float(np.median(baseline_ms)), float(np.median(candidate_ms)))
    speedup = one / other
    low, high = min(low, speedup), max(high, speedup)
    word, why = _word(speedup, low, high, threshold, min(len(baseline_ms), len(candidate_ms)))
    widest = max(spread(baseline_ms), spread(candidate_ms))
    if word in ("faster", "slower") and widest > STEADY:
        word, why = "cannot say", f"rounds spread over {widest:.0%}: the machine was not steady"
    return Verdict(vs, word, speedup, low, high, confidence, f"{why}; not measured together")


def _word(speedup: float, low: float, high: float, threshold: float, rounds: int) -> tuple[Word, str]:
    if rounds < FEWEST_ROUNDS:
        return "cannot say", f"{rounds} rounds are too few to say; {FEWEST_ROUNDS} are needed: measure longer"
    if low <= 1.0 <= high:
        return "no change", "the interval covers 1"
    if 1 / threshold <= speedup <= threshold:
        return "no change", f"the ratio is within {threshold:g}"
    return ("faster" if speedup > 1 else "slower"), "the interval excludes 1"
