"""What numbers make sense for a knob: a value outside is refused before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from edgeprune.errors import UsageError

Range = str
POSITIVE: Range = "a number above 0"
NOT_NEGATIVE: Range = "a number of 0 or more"
AT_LEAST_ONE: Range = "1 or more"
SHARE: Range = "a share in 0..1"
SOME_SHARE: Range = "a share above 0, at most 1"
NOT_ALL: Range = "a share in 0..1, below 1"

_HOLDS: Mapping[Range, Callable[[float], bool]] = {
    POSITIVE: lambda v: 0 < v < math.inf,
    NOT_NEGATIVE: lambda v: 0 <= v < math.inf,
    AT_LEAST_ONE: lambda v: 1 <= v < math.inf,
    SHARE: lambda v: 0 <= v <= 1,
    SOME_SHARE: lambda v: 0 < v <= 1,
    NOT_ALL: lambda v: 0 <= v < 1,
}


def expect(knobs: Any, **ranges: Range) -> None:
    """UsageError that names the first knob of `ranges` (name -> what is expected) whose value is outside; None is open.

    For __post_init__ of an objective's Knobs.
    """
    for name, wanted in ranges.items():
        value = getattr(knobs, name)
        if value is not None and not _HOLDS[wanted](value):
            raise UsageError(f"--set {name}={value:g}: expected {wanted}")
