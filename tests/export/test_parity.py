"""The numbers of parity against a plain reading in float64, and the gate on every fault it must stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeprune.artifact import TensorSpec
from edgeprune.errors import DataError, ParityFailed
from edgeprune.export.parity import FP32, Parity, Tolerance, compare, faults, gate, summary


class Table:
    """A runner whose answer for image i is row i; the image's first pixel says which."""

    settings: Mapping[str, Any] = {}

    def __init__(self, rows: Any, name: str = "table", batch: int | str = "batch") -> None:
        self.rows, self.name, self.sizes = np.asarray(rows, np.float32), name, list[int]()
        self.inputs = (TensorSpec("images", (batch, 3, 2, 2)),)
        self.outputs = (TensorSpec("logits", (batch, self.rows.shape[1])),)

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        images = feeds["images"]
        self.sizes.append(len(images))
        return {"logits": self.rows[images[:, 0, 0, 0].astype(int)]}

    def close(self) -> None: ...

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *args: object) -> None: ...


def batches(n: int, size: int = 3) -> list[Any]:
    images = np.zeros((n, 3, 2, 2), np.float32)
    images[:, 0, 0, 0] = np.arange(n)
    return [images[i : i + size] for i in range(0, n, size)]


def parity(a: Any, b: Any, tolerance: Tolerance = FP32) -> Parity:
    return compare(Table(a), Table(b), batches(len(a)), tolerance)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (7, 4), elements=st.floats(-8, 8, width=32)),
    arrays(np.float32, (7, 4), elements=st.floats(-1, 1, width=32)),
)
def test_numbers_are_those_of_a_plain_reading(a: Any, noise: Any) -> None:
    b = a + noise
    made = parity(a, b)
    x, y = a.astype(float), b.astype(float)
    errors = [max(abs(p - q) for p, q in zip(r, s, strict=True)) for r, s in zip(x, y, strict=True)]
    assert made.max_abs == pytest.approx(max(errors))
    assert made.scale == pytest.approx(np.abs(x).max())
    flips = ties = 0
    for r, s in zip(x, y, strict=True):
        if r.argmax() != s.argmax():
            second, first = sorted(r)[-2:]
            if first - second > 2 * 1e-4 * np.abs(x).max():
                flips += 1
            else:
                ties += 1
    assert (made.flips, made.ties) == (flips, ties)
    assert [w.max_abs for w in made.worst] == sorted(errors, reverse=True)
    assert made.n == 7
    assert summary(made)["n"] == 7


def test_a_network_equals_itself() -> None:
    made = parity(np.eye(5), np.eye(5))
    assert (made.max_abs, made.relative, made.cosine, made.flips, made.ties, made.nan) == (0, 0, 1, 0, 0, 0)
    assert gate(made, FP32, "x") is made
    assert parity(np.zeros((2, 3)), np.zeros((2, 3))).relative == 0


def test_a_clear_answer_that_changes_is_a_flip_and_an_undecided_one_a_tie() -> None:
    made = parity([[1, 0, 0], [1, 0.99999, 0]], [[0.9, 0.95, 0], [0.99999, 1, 0]])
    assert (made.flips, made.ties) == (1, 1)
    assert (made.worst[0].index, made.worst[0].reference, made.worst[0].candidate) == (0, 0, 1)


def test_nan_is_counted_apart_and_stops_the_gate() -> None:
    made = parity(np.eye(3), [[np.nan, 0, 0], [0, 1, 0], [0, np.inf, 1]])
    assert (made.nan, made.reference_nan, made.max_abs) == (2, 0, 0)
    assert faults(made, FP32) == ["NaN or infinity on 2 of 3 images"]
    both = parity(np.full((2, 3), np.nan), np.full((2, 3), np.nan))
    assert both.relative is None
    assert "the reference gives NaN or infinity on 2 of 2 images" in faults(both, FP32)


def test_gate_says_what_failed() -> None:
    rows = np.tile(np.eye(4), (50, 1))
    other = rows.copy()
    other[:2] = other[:2, ::-1]
    made = parity(rows, other)
    with pytest.raises(
        ParityFailed, match=r"net: relative error 1\.00e\+00 where 1e-04 .*2 of 200 answers flipped"
    ):
        gate(made, FP32, "net")
    assert faults(made, Tolerance("int8", None, 0.01)) == []
    assert faults(made, Tolerance("fp16", None, 0.005)) == ["2 of 200 answers flipped where 1 may"]


def test_fixed_batch_is_run_in_pieces_and_the_padding_is_not_counted() -> None:
    rows = np.arange(21, dtype=np.float32).reshape(7, 3)
    fixed = Table(rows, batch=4)
    made = compare(Table(rows), fixed, batches(7, 5))
    assert fixed.sizes == [4, 4, 4]
    assert (made.n, made.max_abs) == (7, 0)


def test_helpful_errors() -> None:
    with pytest.raises(DataError, match="parity needs images and received none"):
        compare(Table(np.eye(2)), Table(np.eye(2)), [])
    with pytest.raises(DataError, match=r"b gives \(3, 2\), a gives \(3, 3\)"):
        compare(Table(np.eye(3), "a"), Table(np.ones((3, 2)), "b"), batches(3))
