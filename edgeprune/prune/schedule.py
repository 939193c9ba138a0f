"""How one budget is reached in several cuts: the last cut is exactly the budget, each one is below the one
before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgeprune.errors import UsageError, nearest

_KEPT: Mapping[str, Callable[[float, float], float]] = {
    "linear": lambda final, t: 1 - (1 - final) * t,
    "exponential": lambda final, t: float(final**t),
    "cubic": lambda final, t: final + (1 - final) * (1 - t) ** 3,
}


def require(kind: str) -> None:
    """UsageError, with the nearest, for a schedule that there is not."""
    if kind not in _KEPT:
        raise UsageError(f"no schedule is called {kind!r}: {nearest(kind, _KEPT)}")


def fractions(final: float, steps: int, kind: str = "cubic") -> tuple[float, ...]:
    """Fraction kept after each of `steps` cuts, the last one exactly `final` (in 0..1, above 0).

    With t = i/steps: linear 1 - (1-f) t; exponential f^t, the same ratio at each cut (HALP, arXiv
    2110.10811); cubic f + (1-f)(1-t)^3, large cuts first (Zhu and Gupta, arXiv 1710.01878, eq. 1, from no
    sparsity). UsageError for an unknown kind or numbers outside their ranges.
    """
    require(kind)
    if steps < 1 or not 0 < final <= 1:
        raise UsageError(
            f"a schedule needs at least one step and a fraction in (0, 1]; received {steps}, {final}"
        )
    return (*(_KEPT[kind](final, i / steps) for i in range(1, steps)), final)
