"""What training leaves behind, and what changes while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

# Of the answers (N,) on the validated target images, None before they are known: what progress shows before the loss.
Told = Callable[[Tensor | None], Mapping[str, float | str]]


@dataclass(frozen=True)
class Fit:
    """What training did: the validated steps with their scores, and which of them the weights are from.

    chosen_by: the validator that chose, "" where the last weights are kept. watched: accuracy at each validated step
    when labelled images were given to watch; it decided nothing.
    """

    chosen_step: int
    curves: list[dict[str, float]]
    warnings: list[str] = field(default_factory=list)
    watched: list[float] = field(default_factory=list)
    chosen_by: str = ""


@dataclass
class State:
    """What changes while training, beside the weights themselves."""

    step: int = 0
    curves: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    watched: list[float] = field(default_factory=list)
