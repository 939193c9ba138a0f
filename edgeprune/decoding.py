"""One file, in a folder or a zip, to an upright 8-bit RGB image.

Must take what real cameras and tools write, refuse everything else with UnreadableImage, and be safe on
files of unknown origin.
"""

from __future__ import annotations

import functools
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeprune import video
from edgeprune.errors import DataError

# Named, so that a file cannot choose a decoder that starts another program (EPS) or follows other files.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_WIDE = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_LARGEST = 1 << 29  # bytes of one zip member; more is a bomb or no image


class UnreadableImage(DataError):
    """One file is truncated or no image; callers that read many skip it and say so."""


def open_rgb(root: Path, name: str, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decode the file `name` of a folder or zip; UnreadableImage when it is truncated or no image.

    EXIF rotation is applied; 16-bit grey is scaled by 1/257; transparent pixels are laid on white (ours: the
    colour under a transparent pixel is arbitrary). `at_least` (H, W) lets a large JPEG be decoded at 1/2, 1/4
    or 1/8, with no side below the larger of the two.
    """
    try:
        if root.is_dir() and (video.moment(name) or video.looks_like_video(name)):
            return video.frame(root, name) if video.moment(name) else _whole_video(root, name)
        with Image.open(_source(root, name), formats=_formats()) as image:
            if at_least is not None:
                image.draft(None, (max(at_least), max(at_least)))  # a rotation may swap the sides
            image.load()
            return _rgb(_upright(image))
    except Exception as err:  # a hostile or broken file can raise anything inside a decoder
        broken = isinstance(err, UnidentifiedImageError)
        cause = "not an image" if broken else str(err) or type(err).__name__
        cause = cause.removeprefix(f"{root / (video.moment(name) or (name,))[0]}: ")
        raise UnreadableImage(f"{root / name}: {cause}") from err


def _whole_video(root: Path, name: str) -> Image.Image:
    """The cause for which a video has no frames among the names."""
    if not video.available():
        raise video.missing(root / name)
    video.frames(root, name)
    raise UnreadableImage("a whole video is no image")


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(f for f in _FORMATS if f in Image.OPEN)  # a Pillow may be built without WebP


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE:
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise UnreadableImage("32-bit pixels have no agreed range; expected 8 or 16 bits")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no agreed range; expected 8 or 16 bits")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF beside whole pixels: keep the pixels
        return image


_open = threading.local()


def _source(root: Path, name: str) -> Path | BytesIO:
    if root.is_dir():
        return root / name
    archive = _archive(root)
    if archive.getinfo(name).file_size > _LARGEST:
        raise UnreadableImage(f"larger than {_LARGEST >> 20} MiB unpacked")
    return BytesIO(archive.read(name))


def _archive(path: Path) -> zipfile.ZipFile:
    # A handle for each thread: readers of one ZipFile wait for each other. It closes when its thread ends.
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    if getattr(_open, "key", None) != key:
        _open.archive, _open.key = zipfile.ZipFile(path), key
    archive: zipfile.ZipFile = _open.archive
    return archive
