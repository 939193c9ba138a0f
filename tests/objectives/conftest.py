"""Gradients of plain readings by central differences, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]


@pytest.fixture
def slope() -> Callable[[Callable[[Array], float], Array], Array]:
    def differences(function: Callable[[Array], float], at: Array) -> Array:
        found = np.zeros_like(at)
        for place in np.ndindex(at.shape):
            step = np.zeros_like(at)
            step[place] = 1e-5
            found[place] = (function(at + step) - function(at - step)) / 2e-5
        return found

    return differences
