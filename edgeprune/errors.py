"""Every error that EdgePrune raises on purpose, and the exit code that each one means.

Each message is one line: what was received, what was expected, where, and the remedy.

    EdgePruneError             1   something is wrong
      DataError                1   images or folders: empty, unreadable, classes that disagree
      ModelError               1   a model's name, weights, classes or factory do not fit
        WeightsError           1   weights that do not fit the network: which leaf, which shapes
        BrokenModel            4   a model file is not whole, or is no graph: nothing can be proved of it
      CheckpointError          4   a checkpoint file is truncated, foreign or does not match its skeleton
        UntrustedFactory       1   a file names a factory that the user did not name
      PlanError                1   a pruning plan does not fit the network
      RunError                 1   a run folder cannot be used
        OutputExists           1   something is there already; --force replaces it
        Finished               0   what --resume asks for is done already; not a fault
        RunLocked              1   another process works in the folder
        DiskFull               1   no space is left; what was written before is intact
      UsageError               2   the words of the command do not make sense together
      BudgetNotMet             3   the nearest plan that is possible does not meet the budget
      ParityFailed             4   two steps that must be equal are not
      MissingHere              5   a package, a device or a driver is not here
      Interrupted            130   stopped by the user; the run can be resumed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

MANY_CHOICES = 40  # more are not all named

__all__ = [
    "BrokenModel",
    "BudgetNotMet",
    "CheckpointError",
    "DataError",
    "DiskFull",
    "EdgePruneError",
    "Finished",
    "Interrupted",
    "MissingHere",
    "ModelError",
    "OutputExists",
    "ParityFailed",
    "PlanError",
    "RunError",
    "RunLocked",
    "UntrustedFactory",
    "UsageError",
    "WeightsError",
    "missing_package",
    "nearest",
]


class EdgePruneError(Exception):
    """The root: catch it to catch everything that EdgePrune raises on purpose."""

    exit_code = 1


class DataError(EdgePruneError):
    """Images or folders cannot be used."""


class ModelError(EdgePruneError):
    """A model's name, weights, classes or factory do not fit."""


class WeightsError(ModelError):
    """Weights do not fit the network."""


class BrokenModel(ModelError):
    """A model file cannot be parsed, or what it holds is no valid graph."""

    exit_code = 4


class CheckpointError(EdgePruneError):
    """A checkpoint file is truncated, foreign, or does not match its skeleton."""

    exit_code = 4


class UntrustedFactory(CheckpointError):
    """A file names a factory that the user did not name."""

    exit_code = 1


class PlanError(EdgePruneError):
    """A pruning plan does not fit the network it is applied to."""


class RunError(EdgePruneError):
    """A run folder cannot be used."""


class OutputExists(RunError):
    """Something is there already."""


class Finished(RunError):
    """What --resume asks for was done by an earlier call; `results` is what it printed with --json."""

    exit_code = 0

    def __init__(self, message: str, results: dict[str, Any]) -> None:
        super().__init__(message, results)  # both, so that it can be sent to other processes
        self.results = results

    def __str__(self) -> str:
        return str(self.args[0])


class RunLocked(RunError):
    """Another process works in the run folder."""


class DiskFull(RunError):
    """No space is left on the device."""


class UsageError(EdgePruneError):
    """The words of the command do not make sense together."""

    exit_code = 2


class BudgetNotMet(EdgePruneError):
    """No legal plan meets the budget; the message names the nearest that does."""

    exit_code = 3


class ParityFailed(EdgePruneError):
    """Two artefacts that must be equal are not."""

    exit_code = 4


class MissingHere(EdgePruneError):
    """A package, a device or a driver is not on this machine."""

    exit_code = 5


class Interrupted(EdgePruneError):
    """Stopped by the user; what was done is saved."""

    exit_code = 130


def missing_package(package: str, extra: str, what: str) -> MissingHere:
    """Name the package, what needs it, and the one command that installs it."""
    return MissingHere(
        f"{what} needs {package}, which is not installed here: pip install 'edgeprune[{extra}]'"
    )


def nearest(word: str, words: Iterable[str]) -> str:
    """End a sentence about an unknown word: the near matches, or else the choices, of very many the first ones."""
    choices = sorted(words)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    if len(choices) > MANY_CHOICES:  # a thousand help nobody
        return f"there are {len(choices)} choices, which begin with {', '.join(choices[:8])}"
    return f"the choices are {', '.join(choices)}" if len(choices) != 1 else f"the only one is {choices[0]!r}"
