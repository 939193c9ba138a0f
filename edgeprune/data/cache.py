"""Decoded images, kept: a memory-mapped file of uint8 rows in the user's cache folder.

Must never serve wrong pixels (keyed by names, sizes, times and geometry; checked when opened), never be half
written, never grow without bound, and never be needed: when it does not fit, the images are decoded at each
use. No torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import platformdirs
from numpy.typing import NDArray

from edgeprune import video
from edgeprune.artifact import write_atomically
from edgeprune.errors import DataError
from edgeprune.images import ImageRef, Preprocess, UnreadableImage, ahead, load, load_all, none_readable
from edgeprune.progress import bar

LIMIT = 8 << 30  # bytes of all caches together
_FORMAT = 1
_STALE_S = 3600.0  # since something was written to a part whose process must be gone
_CHECKED = 64  # rows whose checksums are compared when a cache is opened


class Streamed:
    """Rows (N, H, W, 3) that are decoded each time they are asked for."""

    dtype = np.dtype(np.uint8)

    def __init__(self, refs: Sequence[ImageRef], pre: Preprocess) -> None:
        """Stand for `refs`, which are all readable, at the geometry of `pre`."""
        self._refs, self._pre = list(refs), pre
        self.shape = (len(self._refs), *pre.size, 3)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """Rows `index`, a slice or integers (B,): uint8 (B, H, W, 3); UnreadableImage if one went bad."""
        chosen = [self._refs[i] for i in np.atleast_1d(np.arange(len(self))[index])]
        if not chosen:
            return np.empty((0, *self.shape[1:]), np.uint8)
        return np.stack(list(ahead(lambda r: load(r, self._pre), chosen, min(16, os.cpu_count() or 1))))


@dataclass
class Cached:
    """Row i of `rows`, uint8 (N, H, W, 3), is `refs[i]`; `skipped` has a message for each unreadable file."""

    rows: NDArray[np.uint8] | Streamed
    refs: list[ImageRef]
    skipped: list[str] = field(default_factory=list)


def default_folder() -> Path:
    """The user's cache folder for decoded images."""
    return Path(platformdirs.user_cache_dir("edgeprune", appauthor=False)) / "images"


def open_rows(
    refs: list[ImageRef], pre: Preprocess, folder: Path | None = None, limit: int | None = None
) -> Cached:
    """Open the decoded rows of `refs`, decoding them on threads when they are not there yet.

    `limit`: bytes of all caches in the folder; the least recently used go first. DataError when no file can
    be read.
    """
    folder = folder or default_folder()
    limit = LIMIT if limit is None else limit
    key = _key(refs, pre)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{key}.lock"):
            return _open(folder, key, refs, pre) or _make(folder, key, refs, pre, limit)
    except OSError:
        # A read-only or full disk takes the speed away, not the work.
        return _stream(refs, pre)


def clear(folder: Path | None = None) -> int:
    """Remove every cached file; returns the bytes that are free again."""
    folder = folder or default_folder()
    freed = 0
    for file in _files(folder):
        freed += file.stat().st_size
        file.unlink(missing_ok=True)
    return freed


def size(folder: Path | None = None) -> int:
    """Bytes that the cache takes on disk."""
    return sum(f.stat().st_size for f in _files(folder or default_folder()))


def _files(folder: Path) -> list[Path]:
    # By our own endings only: the folder is the user's choice and may hold other things.
    return [f for e in ("rows", "json", "lock", "part") for f in folder.glob(f"*.{e}") if _ours(f)]


def _ours(file: Path) -> bool:
    stem = file.name.lstrip(".").split(".")[0]
    return len(stem) == 40 and set(stem) <= set("0123456789abcdef")


def _key(refs: Sequence[ImageRef], pre: Preprocess) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, pre.size, pre.interpolation, pre.crop]).encode())
    for line in _stamps(refs):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:40]


def _stamps(refs: Sequence[ImageRef]) -> Iterator[str]:
    """What changes with a file: size and time; in a zip size and checksum, so a moved zip is the same."""
    archives: dict[Path, dict[str, zipfile.ZipInfo]] = {}
    for ref in refs:
        if ref.root.is_dir():
            file, moment = video.moment(ref.name) or (ref.name, "")
            path = (ref.root / file).resolve()
            try:
                stat = path.stat()
                yield f"{path}\0{moment}{stat.st_size}\0{stat.st_mtime_ns}\n"
            except OSError:  # a dangling link: skipped when it is read
                yield f"{path}\0-\n"
        else:
            if ref.root not in archives:
                with zipfile.ZipFile(ref.root) as archive:
                    archives[ref.root] = {i.filename: i for i in archive.infolist()}
            info = archives[ref.root][ref.name]
            yield f"{ref.name}\0{info.file_size}\0{info.CRC}\n"


def _open(folder: Path, key: str, refs: Sequence[ImageRef], pre: Preprocess) -> Cached | None:
    try:
        index = json.loads((folder / f"{key}.json").read_text("utf-8"))
        kept = [refs[i] for i in index["kept"]]
        skipped, sums = [str(s) for s in index["skipped"]], index["sums"]
        path = folder / f"{key}.rows"
        shape = (len(kept), *pre.size, 3)
        if not kept or path.stat().st_size != int(np.prod(shape)) or len(sums) != len(kept):
            return None
        rows = np.memmap(path, np.uint8, "r", shape=shape)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    lost = [refs[i] for i in sorted(set(range(len(refs))) - set(index["kept"]))]
    if lost and any(not isinstance(row, UnreadableImage) for _, row in load_all(lost, pre)):
        return None  # a file that could not be read when the rows were made can be now
    step = max(1, len(kept) // _CHECKED)
    if any(zlib.crc32(rows[i].data) != sums[i] for i in {*range(0, len(kept), step), len(kept) - 1}):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the time of the last use decides what goes first
    return Cached(rows, kept, skipped)


def _make(folder: Path, key: str, refs: Sequence[ImageRef], pre: Preprocess, limit: int) -> Cached:
    need = len(refs) * pre.size[0] * pre.size[1] * 3
    if need > limit or need > 0.9 * shutil.disk_usage(folder).free:
        return _stream(refs, pre)
    _make_room(folder, limit - need)
    part = folder / f"{key}.part"
    kept: list[int] = []
    skipped: list[str] = []
    sums: list[int] = []
    try:
        # Written, not mapped: a write to a full disk is an error, a store to a mapped page would be a signal.
        with part.open("wb") as file, bar("decode", len(refs)) as tick:
            for i, (_, row) in enumerate(load_all(refs, pre)):
                tick()
                if isinstance(row, UnreadableImage):
                    skipped.append(str(row))
                    continue
                data = np.ascontiguousarray(row)
                file.write(data.data)
                kept.append(i)
                sums.append(zlib.crc32(data.data))
            file.flush()
            os.fsync(file.fileno())
        if not kept:
            raise none_readable(refs, skipped)
        os.replace(part, folder / f"{key}.rows")
    finally:
        part.unlink(missing_ok=True)
    index = {"kept": kept, "skipped": skipped, "sums": sums}
    write_atomically(folder / f"{key}.json", json.dumps(index).encode())
    made = _open(folder, key, refs, pre)
    if made is None:
        raise DataError(
            f"{folder}: the cache just written reads back otherwise; choose another folder with --cache"
        )
    return made


def _make_room(folder: Path, limit: int) -> None:
    """Remove the least recently used rows until at most `limit` bytes are taken, and parts that a kill left behind."""
    for part in (f for f in folder.glob("*.part") if _ours(f)):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _STALE_S:
                part.unlink()
    rows = [(f.stat().st_mtime, f.stat().st_size, f) for f in folder.glob("*.rows") if _ours(f)]
    total = sum(s for _, s, _ in rows)
    for _, taken, file in sorted(rows):
        if total <= limit:
            break
        # Processes that have it mapped keep their pages; on Windows the removal fails, and it stays.
        with contextlib.suppress(OSError):
            file.unlink()
            file.with_suffix(".json").unlink(missing_ok=True)
            total -= taken


def _stream(refs: Sequence[ImageRef], pre: Preprocess) -> Cached:
    kept: list[ImageRef] = []
    skipped: list[str] = []
    with bar("check images", len(refs)) as tick:
        for ref, row in load_all(refs, pre):
            tick()
            if isinstance(row, UnreadableImage):
                skipped.append(str(row))
            else:
                kept.append(ref)
    if not kept:
        raise none_readable(refs, skipped)
    return Cached(Streamed(kept, pre), kept, skipped)
