"""A text file that lists images: one path a line, absolute or from the list's own folder; '#' begins a comment."""

from __future__ import annotations

import os
from pathlib import Path

from edgeprune.errors import DataError


def read(file: Path) -> tuple[Path, list[str]]:
    """A folder, and the posix paths in it that a list names, sorted and each once.

    Whole paths when one of them lies outside the list's folder. DataError when it is no text, or when none of its files
    exists; one that is missing among others is skipped by those who read.
    """
    expected = "expected one path a line, absolute or from the list's folder"
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{file}: not a list of images ({err}); {expected}") from err
    base = Path(os.path.abspath(file)).parent
    paths = [Path(os.path.normpath(base / line)) for line in lines if line and not line.startswith("#")]
    if not any(p.is_file() for p in paths):
        first = f"none of its {len(paths)} files exists, the first is {paths[0]}" if paths else "it is empty"
        raise DataError(f"{file}: {first}; {expected}")
    inside = all(p.is_relative_to(base) for p in paths)
    return base, sorted({(p.relative_to(base) if inside else p).as_posix() for p in paths})
