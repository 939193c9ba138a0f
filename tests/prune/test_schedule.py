"""Schedules end at the budget, never rise, and follow their formulas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import UsageError
from edgeprune.prune.schedule import fractions


@given(st.floats(0.01, 1), st.integers(1, 40), st.sampled_from(["linear", "exponential", "cubic"]))
def test_it_falls_to_the_budget(final: float, steps: int, kind: str) -> None:
    kept = fractions(final, steps, kind)
    assert len(kept) == steps
    assert kept[-1] == final
    assert all(1 + 1e-12 >= a >= b - 1e-12 for a, b in zip((1.0, *kept), kept, strict=False))


def test_the_formulas() -> None:
    assert fractions(0.4, 3, "linear") == pytest.approx((0.8, 0.6, 0.4))
    assert fractions(0.125, 3, "exponential") == pytest.approx((0.5, 0.25, 0.125))
    assert fractions(0.2, 2, "cubic") == pytest.approx((0.2 + 0.8 / 8, 0.2))


def test_helpful_errors() -> None:
    with pytest.raises(UsageError, match="did you mean 'cubic'"):
        fractions(0.5, 2, "cubik")
    with pytest.raises(UsageError, match="at least one step"):
        fractions(0.5, 0)
