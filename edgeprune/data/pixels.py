"""Decoded images as one uint8 tensor: memory-mapped, or decoded at each use when the cache cannot hold them.

Unlabelled data carries `labels=None` by type, so that a target's labels cannot leak into training.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeprune.data import cache as caching
from edgeprune.data.cache import Streamed
from edgeprune.images import ImageRef, Preprocess


@dataclass
class Pixels:
    """Images at the evaluation geometry: `images` uint8 (N, H, W, 3), `labels` int64 (N,) or None, N `names`.

    `skipped` has one message for each file that could not be read; `classes` are the names that labels index.
    """

    images: Tensor | Streamed
    labels: Tensor | None
    names: list[str]
    skipped: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def take(self, index: Tensor) -> Tensor:
        """Rows `index` (B,) as uint8 (B, H, W, 3), in memory."""
        if isinstance(self.images, Streamed):
            return torch.from_numpy(self.images[index.numpy()])
        return self.images[index]

    def subset(self, index: Iterable[int]) -> Pixels:
        """The images `index` alone, in that order, copied to memory; nothing is counted as skipped."""
        rows = torch.as_tensor(list(index), dtype=torch.int64)
        labels = None if self.labels is None else self.labels[rows]
        return Pixels(self.take(rows), labels, [self.names[i] for i in rows.tolist()], [], self.classes)

    def spread(self, most: int) -> Pixels:
        """At most so many of the images, evenly spaced, copied to memory."""
        rows = torch.linspace(0, len(self) - 1, min(most, len(self))).round().long()
        return self.subset(rows.tolist())


class Chosen(Streamed):
    """Rows `index` (M,) of other rows, read when they are asked for."""

    def __init__(self, rows: Tensor | Streamed, index: Tensor) -> None:
        self._rows, self._index = rows, index.numpy()
        self.shape = (len(index), *rows.shape[1:])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """Rows `index`, a slice or integers (B,): uint8 (B, H, W, 3)."""
        return np.asarray(self._rows[self._index[index]])


def split(pixels: Pixels, share: float, seed: int) -> tuple[Pixels, Pixels]:
    """Labelled images in two, the second `share` of each class, at least one where there are two.

    Nothing is copied, and it is the same for the same seed.
    """
    assert pixels.labels is not None
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed % (1 << 63)))
    second = torch.zeros(len(pixels), dtype=torch.bool)
    for label in sorted(set(pixels.labels.tolist())):
        members = order[pixels.labels[order] == label]
        second[members[: min(len(members) - 1, max(1, round(share * len(members))))]] = True
    first = chosen(pixels, ~second)
    first.skipped = pixels.skipped
    return first, chosen(pixels, second)


def without(pixels: Pixels, others: Pixels) -> Pixels:
    """The labelled images that are not, value by value, among the others; nothing is copied."""
    known = set(_digests(others))
    rest = chosen(pixels, torch.tensor([one not in known for one in _digests(pixels)], dtype=torch.bool))
    rest.skipped = pixels.skipped
    return rest


def _digests(pixels: Pixels) -> Iterator[bytes]:
    for i in range(len(pixels)):
        yield hashlib.sha256(pixels.take(torch.tensor([i])).contiguous().numpy().tobytes()).digest()


def chosen(pixels: Pixels, mask: Tensor) -> Pixels:
    """The labelled images where the mask (N,) says so; nothing is copied."""
    assert pixels.labels is not None
    index = mask.nonzero().flatten()
    names = [pixels.names[i] for i in index.tolist()]
    return Pixels(Chosen(pixels.images, index), pixels.labels[index], names, [], pixels.classes)


def decode(refs: list[ImageRef], pre: Preprocess, cache: Path | None = None) -> tuple[Pixels, list[ImageRef]]:
    """Decode through the cache in folder `cache` (None: the user's): Pixels without labels, their refs."""
    found = caching.open_rows(refs, pre, cache)
    rows = found.rows
    with warnings.catch_warnings():
        # Mapped for reading, on purpose: nobody writes to these rows, and a writable map counts as memory.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images = rows if isinstance(rows, Streamed) else torch.from_numpy(np.asarray(rows))
    return Pixels(images, None, [r.name for r in found.refs], found.skipped), found.refs
