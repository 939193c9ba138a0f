"""Whether two steps of a deployment are the same function, on the user's own images, in numbers.

The answers of a classifier are compared as logits (N, K). Errors are relative to the scale of the reference's
output, max |reference|. A changed top-1 answer is a flip, unless the reference itself was undecided: its
margin (best logit - second) is at most 2 * tie * scale, where `tie` is the relative error that FP32
rounding alone may cause. Such answers are ties, counted apart. (With the measured max abs error in place of
tie * scale nothing could ever be a flip: an answer changes only where the margin is at most twice the error
there.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, ParityFailed
from edgeprune.runtime import Runner

Array = NDArray[Any]
WORST = 10


@dataclass(frozen=True)
class Tolerance:
    """What a step may change. relative: bound of max abs error / scale, or None; flips: share of answers."""

    name: str
    relative: float | None
    flips: float
    tie: float = 1e-4


FP32 = Tolerance("fp32", relative=1e-4, flips=0.0)


@dataclass(frozen=True)
class Sample:
    """One image: its index in the order given, error, answers, and the reference's margin."""

    index: int
    max_abs: float
    cosine: float
    reference: int
    candidate: int
    margin: float


@dataclass(frozen=True)
class Parity:
    """n images. cosine: the lowest of any image; worst: up to ten images, largest error first.

    nan: images whose candidate output holds a NaN or an infinity; reference_nan: the same of the reference.
    Errors, flips and cosine are those of the other images, and None when there are none.
    """

    n: int
    scale: float | None
    max_abs: float | None
    relative: float | None
    cosine: float | None
    flips: int
    ties: int
    nan: int
    reference_nan: int
    worst: tuple[Sample, ...]
    samples: tuple[Sample, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values, without the samples: those are many, see `rows`."""
        kept = asdict(replace(self, samples=()))
        del kept["samples"]
        return {**kept, "worst": [asdict(s) for s in self.worst]}

    def rows(self, names: Sequence[str] = ()) -> list[dict[str, Any]]:
        """One row an image, in the order given, by name where `names` has one for each image."""
        return [named(asdict(s), names) for s in self.samples]


def compare(
    reference: Runner, candidate: Runner, images: Iterable[Array], tolerance: Tolerance = FP32
) -> Parity:
    """Run both on batches (n, 3, H, W) float32 and compare the first output of each.

    A candidate of another fixed batch is run in pieces of that size, the last one padded. DataError when
    there is no image or the outputs are not of one shape.
    """
    given = [batch for batch in images if len(batch)]
    return against(outputs(reference, given), candidate, given, tolerance, reference.name)


def outputs(runner: Runner, images: Iterable[Array]) -> NDArray[np.float64]:
    """(N, K) of every image; DataError when there is none."""
    made = [logits(runner, batch) for batch in images if len(batch)]
    if not made:
        raise DataError("parity needs images and received none; give --images DIR")
    return np.concatenate(made)


def against(
    expected: NDArray[np.float64],
    candidate: Runner,
    images: Iterable[Array],
    tolerance: Tolerance = FP32,
    reference: str = "the reference",
) -> Parity:
    """As `compare`, with the reference's outputs (N, K) known already."""
    received = outputs(candidate, images)
    if expected.shape != received.shape:
        raise DataError(f"{candidate.name} gives {received.shape}, {reference} gives {expected.shape}")
    return judge(expected, received, tolerance.tie)


def logits(runner: Runner, batch: Array) -> NDArray[np.float64]:
    """The first output for images (n, 3, H, W), as (n, K) float64, whatever the network's fixed batch is."""
    spec, output = runner.inputs[0], runner.outputs[0].name
    fixed = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else len(batch)
    made = []
    for start in range(0, len(batch), fixed):
        piece = batch[start : start + fixed]
        short = fixed - len(piece)
        full = np.concatenate([piece, np.repeat(piece[-1:], short, axis=0)]) if short else piece
        feeds = {spec.name: np.ascontiguousarray(full, dtype=spec.dtype)}
        made.append(runner.infer(feeds)[output][: len(piece)])
    return np.concatenate(made).reshape(len(batch), -1).astype(np.float64)


def judge(expected: NDArray[np.float64], received: NDArray[np.float64], tie: float = FP32.tie) -> Parity:
    """The numbers of two arrays of outputs (N, K) for the same images."""
    bad_reference, bad = (~np.isfinite(x).all(axis=1) for x in (expected, received))
    where = np.flatnonzero(~(bad | bad_reference))
    good, other = expected[where], received[where]
    nothing = Parity(
        len(expected), None, None, None, None, 0, 0, int(bad.sum()), int(bad_reference.sum()), ()
    )
    if not len(where):
        return nothing
    scale, errors = float(np.abs(good).max()), np.abs(good - other).max(axis=1)
    norms = np.linalg.norm(good, axis=1) * np.linalg.norm(other, axis=1)
    cosines = np.where(norms > 0, (good * other).sum(axis=1) / np.where(norms > 0, norms, 1), errors == 0)
    before, after = good.argmax(axis=1), other.argmax(axis=1)
    margins = _margins(good)
    changed, undecided = before != after, margins <= 2 * tie * scale

    def sample(i: int) -> Sample:
        numbers = float(errors[i]), float(cosines[i]), int(before[i]), int(after[i]), float(margins[i])
        return Sample(int(where[i]), *numbers)

    max_abs = float(errors.max())
    return Parity(
        n=len(expected),
        scale=scale,
        max_abs=max_abs,
        relative=max_abs / scale if scale > 0 else (0.0 if max_abs == 0 else float("inf")),
        cosine=float(cosines.min()),
        flips=int((changed & ~undecided).sum()),
        ties=int((changed & undecided).sum()),
        nan=nothing.nan,
        reference_nan=nothing.reference_nan,
        worst=tuple(sample(int(i)) for i in np.argsort(-errors, kind="stable")[:WORST]),
        samples=tuple(sample(i) for i in range(len(where))),
    )


def _margins(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if values.shape[1] < 2:
        return np.full(len(values), np.inf)
    two = np.partition(values, -2, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])


def faults(parity: Parity, tolerance: Tolerance) -> list[str]:
    """What a comparison has against the candidate, a clause each; empty when it passes."""
    found = []
    if parity.reference_nan:
        found.append(f"the reference gives NaN or infinity on {parity.reference_nan} of {parity.n} images")
    if parity.nan:
        found.append(f"NaN or infinity on {parity.nan} of {parity.n} images")
    if (
        parity.relative is not None
        and tolerance.relative is not None
        and parity.relative > tolerance.relative
    ):
        found.append(f"relative error {parity.relative:.2e} where {tolerance.relative:.0e} is allowed")
    allowed = int(tolerance.flips * parity.n + 1e-9)
    if parity.flips > allowed:
        found.append(f"{parity.flips} of {parity.n} answers flipped where {allowed} may")
    return found


def gate(parity: Parity, tolerance: Tolerance, what: str) -> Parity:
    """Return `parity` when it is within `tolerance`; ParityFailed, with `what` and the numbers, when not."""
    if found := faults(parity, tolerance):
        image = f"; worst is image {parity.worst[0].index}" if parity.worst else ""
        raise ParityFailed(f"{what}: {'; '.join(found)} ({tolerance.name}, {parity.n} images{image})")
    return parity


def named(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A sample's row with the name of its image, when there are names."""
    return {"image": names[row["index"]], **row} if row["index"] < len(names) else dict(row)


def summary(parity: Parity) -> Mapping[str, Any]:
    """The numbers for a sidecar or a table row, without the samples."""
    return {k: v for k, v in parity.to_json().items() if k != "worst"}
