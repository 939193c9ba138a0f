"""Which folder a run takes: its default name, why another's is refused, and what a full disk means for it.

Must leave nothing in a folder that is none of ours, and tell two processes that ask at once different names.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeprune.errors import DiskFull, OutputExists
from edgeprune.records import is_done, read_json

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
OURS = frozenset({".lock", ".owner.json"})


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk (or quota, or file size limit) inside the block into DiskFull about `path`."""
    try:
        yield
    except OSError as err:
        if err.errno not in _FULL:
            raise
        raise DiskFull(
            f"{path}: no space left to write it ({err.strerror}); what was written before is intact: "
            "free some space, then go on with --resume"
        ) from err


def default(command: str, model: str, resume: bool) -> Path:
    """The first free runs/<command>-<model>-<n>, made; with `resume` the last unfinished one."""
    stem = f"{command}-{_short(model)}"
    numbers = [
        int(m[1]) for p in Path("runs").glob("*") if (m := re.fullmatch(re.escape(stem) + r"-(\d+)", p.name))
    ]
    if resume and numbers:
        for number in sorted(numbers, reverse=True):
            path = Path("runs") / f"{stem}-{number}"
            marker = read_json(path / "run.json")
            # Two models may share a short name.
            if (
                marker
                and (marker.get("command"), marker.get("model")) == (command, model)
                and not is_done(path)
            ):
                return path
    number = max(numbers, default=0) + 1
    while True:  # another process may take the same number at the same moment
        path = Path("runs") / f"{stem}-{number}"
        try:
            with writing(path):
                path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def _short(model: str) -> str:
    """A run's name for its model: 'timm:resnet18' -> 'resnet18', 'runs/adapt-resnet18-3' -> 'resnet18'."""
    name = re.split(r"[:/\\]", model.rstrip("/\\"))[-1] or "model"
    name = name.removesuffix(".safetensors").removesuffix(".onnx")
    if found := re.fullmatch(r"(?:adapt|prune|export|bench)-(.+)-\d+", name):
        name = found[1]
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "model"


def refuse_foreign(path: Path) -> None:
    """OutputExists when a file, or something that is no run, is there."""
    # Before the lock, so that not even a lock file is left in a folder that is none of ours.
    if path.is_dir():
        held = sorted(p.name for p in path.iterdir() if p.name not in OURS and not is_part(p.name))
        if held and "run.json" not in held:
            raise OutputExists(
                f"{path}: holds files that are no run of edgeprune ({held[0]}); choose another with -o"
            )
    elif path.exists():
        raise OutputExists(f"{path}: a file is there; expected a folder for the run: choose another with -o")


def occupied(path: Path, marker: Mapping[str, Any]) -> str:
    """What is said of a folder that holds a run."""
    done = read_json(path / "done.json")
    what = f"{marker.get('command', 'run')} {marker.get('model', '')}".strip()
    if done is not None:
        when = done.get("finished", "an unknown day")
        return (
            f"{path}: the run '{what}' finished there on {when}; --force replaces it, -o takes another folder"
        )
    when = marker.get("started", "an unknown day")
    return (
        f"{path}: an unfinished run '{what}', begun on {when}; --resume goes on with it, --force starts again"
    )


def owner(path: Path) -> str:
    """Who works in a folder, in words."""
    found = read_json(path / ".owner.json")
    if found is None:
        return "another process"
    return f"process {found.get('pid')} on {found.get('host')} since {found.get('since')}"


def is_part(name: str) -> bool:
    """Whether a file is one that was being written."""
    return name.startswith(".") and name.endswith(".part")
