"""The one definition of how a file becomes an input: used by training, parity, bench and predict alike.

Must work without torch, take what real folders hold (nesting, zips, junk of other systems), and never let
one bad file end the work on the good ones.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeprune import decoding, listing, video
from edgeprune.decoding import UnreadableImage
from edgeprune.errors import DataError, nearest

__all__ = [
    "ImageRef",
    "Preprocess",
    "UnreadableImage",
    "batches",
    "classes",
    "find",
    "load",
    "load_all",
    "looks_like_image",
    "normalise",
    "open_rgb",
    "resize",
]

_FILTERS: Mapping[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_ENDINGS = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
    }
)
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini"})

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Preprocess:
    """What an image goes through before the network.

    `size` (H, W) in pixels; `mean` and `std` per channel, of RGB pixels in 0..1; `interpolation` of the
    resize; `crop`: share of the resized short side that the centre crop keeps (224 of 256 is 0.875).
    `layout`: "nhwc" or "nchw" when the graph itself normalises and takes uint8 pixels so; "" for normalised ones.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop: float = 1.0
    layout: str = ""

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise DataError(f"image size {self.size}: expected a height and a width of at least 1 pixel")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            said = "expected three numbers each, one a channel, std > 0"
            raise DataError(f"mean {self.mean}, std {self.std}: {said}")
        if self.interpolation not in _FILTERS:
            raise DataError(
                f"interpolation {self.interpolation!r} is not known; {nearest(self.interpolation, _FILTERS)}"
            )
        if not 0 < self.crop <= 1:
            raise DataError(
                f"crop {self.crop}: expected the kept share of the short side, above 0 and at most 1"
            )
        if self.layout not in ("", "nhwc", "nchw"):
            raise DataError(f"layout {self.layout!r}: expected nhwc, nchw, or nothing for normalised images")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of from_json."""
        facts = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if not self.layout:
            del facts["layout"]
        return facts

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocess:
        """Read what to_json wrote; DataError when a field is missing or makes no sense."""
        try:
            height, width = (int(n) for n in data["size"])
            mean, std = (tuple(float(x) for x in data[key]) for key in ("mean", "std"))
            crop, layout = float(data.get("crop", 1.0)), str(data.get("layout", ""))
            interpolation = str(data.get("interpolation", "bilinear"))
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(
                f"preprocessing {dict(data)!r} cannot be read ({err!r}); expected size, mean, std"
            ) from err
        return cls((height, width), mean, std, interpolation, crop, layout)


@dataclass(frozen=True)
class ImageRef:
    """Where an image is: `name` is its posix path within `root`, a folder or a zip (or whole); `label` its class."""

    root: Path
    name: str
    label: str | None = None

    def __str__(self) -> str:
        return str(self.root / self.name)


def find(root: Path) -> list[ImageRef]:
    """List every file under a folder, in a zip or named in a .txt list, sorted by name, and the frames of videos.

    A folder or zip that holds one folder only is entered first, as often as it is so; the class is the first
    folder level after that. Junk of macOS and Windows is left out, unless a list names it. Images are not opened
    here: what turns out to be none is skipped by those who read. DataError when there is no image file by its ending;
    MissingHere when there are videos alone and nothing here reads them.
    """
    base, names = _base_and_names(root)
    filmed = [n for n in names if video.looks_like_video(n)] if base.is_dir() else []
    seen = [n for n in names if looks_like_image(n)]
    if filmed and not seen and not video.available():
        raise video.missing(base / filmed[0])
    if not seen and not filmed:
        held = f"{len(names)} other files" if names else "it is empty"
        said = f"{root}: no images there ({held}); expected JPEG, PNG, WebP or BMP files, nested in any way"
        raise DataError(said)
    folders = [PurePosixPath(n).parts[:-1] for n in (*seen, *filmed)]
    depth = 0
    while all(len(f) > depth for f in folders) and len({f[depth] for f in folders}) == 1:
        depth += 1
    return [ImageRef(base, part, _label(n, depth)) for n in names for part in _parts(base, n)]


def _base_and_names(root: Path) -> tuple[Path, list[str]]:
    if root.is_file() and root.suffix.lower() == ".txt":
        return listing.read(root)
    if root.is_file() and video.looks_like_video(root.name):
        return root.parent, [root.name]
    return root, sorted(n for n in _names(root) if not _is_junk(n))


def _parts(base: Path, name: str) -> list[str]:
    """The file itself, or the frames of a video that can be opened."""
    if video.looks_like_video(name) and base.is_dir() and video.available():
        with contextlib.suppress(DataError):  # skipped, with its cause, when it is read
            return video.frames(base, name)
    return [name]


def _label(name: str, depth: int) -> str | None:
    parts = PurePosixPath(name).parts
    return parts[depth] if len(parts) > depth + 1 else None


def _names(root: Path) -> Iterator[str]:
    if root.is_dir():
        yield from _walk(root)
    elif not root.exists():
        raise missing(root)
    else:
        try:
            with zipfile.ZipFile(root) as archive:
                yield from (i.filename for i in archive.infolist() if not i.is_dir())
        except (zipfile.BadZipFile, OSError) as err:
            said = f"{root}: neither a folder nor a whole zip, a .txt list or a video ({err})"
            raise DataError(said) from err


def missing(root: Path) -> DataError:
    """Make the error for images that are not there."""
    return DataError(f"{root}: there is no such folder, zip, .txt list or video")


def _walk(root: Path) -> Iterator[str]:
    # Data sets are often linked together, so links are followed; a link to a parent is entered once.
    seen: set[str] = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        inner = Path(folder).relative_to(root)
        yield from ((inner / f).as_posix() for f in files)


def _is_junk(name: str) -> bool:
    return any(p.startswith(".") or p.lower() in _JUNK for p in PurePosixPath(name).parts)


def looks_like_image(name: str) -> bool:
    """Say whether the ending of a name is that of an image, or the name that of a video's frame."""
    return PurePosixPath(name).suffix.lower() in _ENDINGS or video.moment(name) is not None


def classes(refs: Iterable[ImageRef]) -> tuple[str, ...]:
    """Distinct labels, sorted; files of no class and files that are no image by their ending do not count."""
    return tuple(sorted({r.label for r in refs if r.label is not None and looks_like_image(r.name)}))


def open_rgb(ref: ImageRef, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decode one file to an upright 8-bit RGB image; UnreadableImage when it is truncated or no image.

    `at_least` (H, W) allows a large JPEG to be decoded smaller, see edgeprune.decoding.
    """
    return decoding.open_rgb(ref.root, ref.name, at_least)


def resize(image: Image.Image, pre: Preprocess) -> NDArray[np.uint8]:
    """Resize so that the short side covers size/crop, then centre crop: uint8 (H, W, 3).

    The sizes round as in torchvision's Resize and CenterCrop, so published accuracies hold.
    """
    height, width = pre.size
    # The small number is for shares such as 224/232, whose quotient may fall just below 232.
    covered_h, covered_w = (math.floor(n / pre.crop + 1e-6) for n in pre.size)
    w, h = image.size
    if covered_h * w <= covered_w * h:  # the width is the side that has to be covered
        to = (covered_w, max(height, covered_w * h // w))
    else:
        to = (max(width, covered_h * w // h), covered_h)
    if to != image.size:
        image = image.resize(to, _FILTERS[pre.interpolation])
    top, left = round((to[1] - height) / 2), round((to[0] - width) / 2)
    return np.asarray(image, dtype=np.uint8)[top : top + height, left : left + width]


def normalise(batch: NDArray[np.uint8], pre: Preprocess) -> NDArray[Any]:
    """Turn uint8 (N, H, W, 3) into contiguous float32 (N, 3, H, W): (pixel / 255 - mean) / std.

    With `pre.layout` the pixels stay uint8, in that layout: the graph that they go to normalises them itself.
    """
    if pre.layout:
        return np.ascontiguousarray(batch if pre.layout == "nhwc" else batch.transpose(0, 3, 1, 2))
    scale, shift = scale_shift(pre)
    out = np.empty((batch.shape[0], 3, *batch.shape[1:3]), np.float32)
    np.multiply(batch.transpose(0, 3, 1, 2), scale[:, None, None], out=out)
    out += shift[:, None, None]
    return out


def scale_shift(pre: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give (3,) scale and (3,) shift with normalised = pixel * scale + shift, for pixels in 0..255."""
    mean, std = np.asarray(pre.mean, np.float64), np.asarray(pre.std, np.float64)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def load(ref: ImageRef, pre: Preprocess) -> NDArray[np.uint8]:
    """Open and resize one file: uint8 (H, W, 3); UnreadableImage when it cannot be read."""
    # Twice the wanted size, so that the resize and not the JPEG decoder decides what the pixels look like.
    wanted = (math.ceil(2 * pre.size[0] / pre.crop), math.ceil(2 * pre.size[1] / pre.crop))
    return resize(open_rgb(ref, wanted), pre)


def load_all(
    refs: Sequence[ImageRef], pre: Preprocess, threads: int | None = None
) -> Iterator[tuple[ImageRef, NDArray[np.uint8] | UnreadableImage]]:
    """Load every file on threads, in order; one that cannot be read comes as its error, and ends nothing."""

    def one(ref: ImageRef) -> NDArray[np.uint8] | UnreadableImage:
        try:
            return load(ref, pre)
        except UnreadableImage as err:
            return err

    if any(video.moment(r.name) for r in refs):
        threads = 1  # each would decode the whole video for its share of the frames
    yield from zip(refs, ahead(one, refs, threads or min(16, (os.cpu_count() or 1) + 1)), strict=True)


def ahead(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Map `work` over `items` on threads, in order, a bounded number of items ahead of the reader."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches(
    refs: Sequence[ImageRef], pre: Preprocess, size: int, skipped: list[str] | None = None
) -> Iterator[tuple[NDArray[Any], list[ImageRef]]]:
    """Yield what `normalise` makes of n images with the refs that made it, n = size but for the last, in order.

    What cannot be read is left out and its message appended to `skipped`; DataError when nothing can be read.
    """
    lost = skipped if skipped is not None else []
    rows: list[NDArray[np.uint8]] = []
    kept: list[ImageRef] = []
    good = 0
    for ref, row in load_all(refs, pre):
        if isinstance(row, UnreadableImage):
            lost.append(str(row))
            continue
        rows.append(row)
        kept.append(ref)
        good += 1
        if len(rows) == size:
            yield normalise(np.stack(rows), pre), kept
            rows, kept = [], []
    if rows:
        yield normalise(np.stack(rows), pre), kept
    if not good:
        raise none_readable(refs, lost)


def none_readable(refs: Sequence[ImageRef], lost: Sequence[str]) -> DataError:
    """Make the error for a set in which not one file can be read."""
    first, where = lost[0] if lost else "-", refs[0].root if refs else "the images"
    all_of_them = f"{where}: none of the {len(refs)} files can be read as an image; the first: {first}"
    return DataError(first if len(refs) == 1 and lost else all_of_them)
