"""The files that a command will write at its end: refused before its work, not after."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from edgeprune.errors import MissingHere, OutputExists, UsageError


def require(paths: Iterable[Path | None], force: bool) -> None:
    """Every path (None is skipped) can become a file.

    OutputExists for one that is there, unless forced; UsageError for a folder, or for one named twice; MissingHere
    where nothing can be written. Nothing is left behind.
    """
    wanted = [path for path in paths if path is not None]
    for at, path in enumerate(wanted):
        if path.resolve() in [other.resolve() for other in wanted[:at]]:
            raise UsageError(f"{path}: two outputs have this name; expected a file for each")
        if path.is_dir():
            raise UsageError(
                f"{path}: is a folder; expected the name of a file to write, such as {path / 'out'}"
            )
        if path.exists() and not force:
            raise OutputExists(f"{path} exists; --force replaces it")
        _try(path)


def _try(path: Path) -> None:
    """Write a file that vanishes into the nearest folder that is there: os.access lies to root and on /proc."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        raise MissingHere(
            f"{path}: cannot be written, since {folder} takes no file ({err.strerror or err}); "
            "name a file in a folder that you may write to"
        ) from err
