"""Decoded images as one uint8 tensor: memory-mapped, or decoded at each use when the cache cannot hold them.

Unlabelled data carries `labels=None` by type, so that a target's labels cannot leak into training.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
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


def decode(refs: list[ImageRef], pre: Preprocess, cache: Path | None = None) -> tuple[Pixels, list[ImageRef]]:
    """Decode through the cache in folder `cache` (None: the user's): Pixels without labels, their refs."""
    found = caching.open_rows(refs, pre, cache)
    rows = found.rows
    with warnings.catch_warnings():
        # Mapped for reading, on purpose: nobody writes to these rows, and a writable map counts as memory.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images = rows if isinstance(rows, Streamed) else torch.from_numpy(np.asarray(rows))
    return Pixels(images, None, [r.name for r in found.refs], found.skipped), found.refs
