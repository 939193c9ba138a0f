"""A run folder that several processes share: the first one writes it, the others read what they resume from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune import processes
from edgeprune.errors import EdgePruneError, UsageError
from edgeprune.run import Run


class Follower(Run):
    """The run of a process that is not the first: reads go to the folder, nothing is written, withdrawn or locked."""

    def __init__(self, path: Path, command: str, model: str) -> None:
        self.path, self.command, self.model, self.resumed = path, command, model, False
        self._made = False

    def _append(self, name: str, line: str) -> None:
        pass

    def write(self, name: str, data: bytes) -> Path:
        """Nothing is written."""
        return self.path / name

    def rewind_metrics(self, position: int) -> None:
        """Nothing is rewound."""

    def finish(self, results: Mapping[str, Any] | None = None) -> None:
        """The first process finishes the run."""

    def close(self) -> None:
        """There is no lock."""

    def __exit__(self, *_: object) -> None:
        """What becomes of the folder is the first process's to decide."""


def create(path: Path | None, *, device: str, command: str, model: str, **more: Any) -> Run:
    """`Run.create` in the first process; in the others, once that is done, its folder to read from.

    `device` as for processes.fabric. What the first process cannot use, none can: all raise its error. UsageError
    without a path in several processes: they would not agree on a name.
    """
    together = processes.environment()
    if together is None:
        return Run.create(path, command=command, model=model, **more)
    if path is None:
        raise UsageError(f"{together.world_size()} processes need one run folder: give -o DIR")
    joined = processes.fabric(device, "32-true")
    run, refused = None, None
    if together.global_rank() == 0:
        try:
            run = Run.create(path, command=command, model=model, **more)
        except EdgePruneError as err:
            refused = err
    refused = joined.broadcast(refused)
    if refused is not None:
        raise refused
    return run if run is not None else Follower(path, command, model)
