"""Video files as images: which moments are taken, and a moment's frame. PyAV is opened on use; no torch.

A frame's name is its file's with the moment below it, as though a video were a folder: "clip.mp4/00003.500s".
"""

from __future__ import annotations

import functools
import importlib.util
import re
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from edgeprune.errors import DataError, MissingHere, missing_package

EVERY = 0.5  # seconds from one frame that is taken to the next
_FAR = 10.0  # seconds that are rather decoded than sought over
_ENDINGS = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
)
_FRAME = re.compile(r"(.+)/(\d+\.\d{3})s")


def looks_like_video(name: str) -> bool:
    """Say whether the ending of a name is that of a video."""
    return PurePosixPath(name).suffix.lower() in _ENDINGS


def moment(name: str) -> tuple[str, float] | None:
    """The video's name and the seconds from its start that a frame's name says; None for any other name."""
    found = _FRAME.fullmatch(name)
    return (found[1], float(found[2])) if found and looks_like_video(found[1]) else None


@functools.cache
def available() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def missing(what: object) -> MissingHere:
    """The error for a video where PyAV is not installed."""
    return missing_package("av", "video", f"reading the video {what}")


def frames(root: Path, name: str) -> list[str]:
    """Names of the frames that are taken of a video: one every half second, the first one always.

    DataError when it cannot be opened or holds no picture.
    """
    with _opened(root / name) as container:
        length = _length(container)
    return [f"{name}/{i * EVERY:09.3f}s" for i in range(max(1, -int(-length // EVERY)))]


def frame(root: Path, name: str) -> Image.Image:
    """The upright RGB image of a frame's name; of several asked for in order, each is decoded once.

    DataError when the video cannot be decoded there.
    """
    found = moment(name)
    if found is None:
        raise DataError(f"{root / name}: a whole video is no image")
    path, seconds = root / found[0], found[1]
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    if getattr(_open, "key", None) != key:
        _open.key, _open.reader = None, None
        _open.reader, _open.key = _Reader(path), key
    image: Image.Image = _open.reader.at(seconds)
    return image


_open = threading.local()  # a decoder for each thread; it closes when its thread ends


def _opened(path: Path) -> Any:
    if not available():
        raise missing(path)
    import av

    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as err:
        why = getattr(err, "strerror", None) or err
        raise DataError(f"{path}: not a video that can be read ({why})") from err
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: holds no picture, expected a video")
    return container


def _length(container: Any) -> float:
    """Seconds; where the file does not say, the last packet does."""
    stream = container.streams.video[0]
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(container.duration / 1_000_000)
    start = stream.start_time or 0
    ends = [p.pts - start + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
    return float(max(ends, default=0) * stream.time_base)


class _Reader:
    """One video, at best read forwards."""

    def __init__(self, path: Path) -> None:
        self.path, self.container = path, _opened(path)
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.start = float((self.stream.start_time or 0) * self.stream.time_base)
        self.coming: Iterator[Any] = self.container.decode(self.stream)
        self.last: Any = None

    def at(self, seconds: float) -> Image.Image:
        """The first frame at or after the moment, else the last one."""
        import av

        wanted = self.start + seconds - 1e-3
        try:
            if self.last is not None and not self.last.time < wanted <= self.last.time + _FAR:
                self.container.seek(int((wanted) / self.stream.time_base), stream=self.stream)
                self.coming, self.last = self.container.decode(self.stream), None
            for found in self.coming:
                self.last = found
                if found.time is not None and found.time >= wanted:
                    break
        except (av.error.FFmpegError, OSError, ValueError) as err:
            raise DataError(f"{self.path}: cannot be decoded at {seconds:g} s ({err})") from err
        if self.last is None:
            raise DataError(f"{self.path}: no picture at {seconds:g} s")
        image: Image.Image = self.last.to_image()
        turned = getattr(self.last, "rotation", 0)  # a telephone held upright
        return image.rotate(turned, expand=True) if turned else image
