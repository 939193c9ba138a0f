"""Batches of views, each a pure function of (seed, step): a resumed run needs no state of an iterator.

Steps are made ahead, each in a thread and with generators of its own, so the global random state of training is never
touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from edgeprune.data import views as making
from edgeprune.data.pixels import Pixels
from edgeprune.errors import DataError, UsageError, nearest
from edgeprune.images import Preprocess, scale_shift

View = Callable[[Tensor, torch.Generator], Tensor]
VIEWS = ("plain", "train", "weak", "strong")


@dataclass(frozen=True)
class RawBatch:
    """`index` int64 (B,) into the Pixels, `labels` int64 (B,) or None, `views` name -> float32 (B, 3, H, W).

    The views are normalised.
    """

    index: Tensor
    labels: Tensor | None
    views: Mapping[str, Tensor]


class Batches:
    """Endless shuffled batches; every image comes once before any comes twice.

    Views: "plain" the evaluation geometry; "train" random resized crop and flip; "weak" flip and a small
    shift; "strong" two random operations and a cutout. `crop` is the range of the area that "train" keeps;
    `flip=False` is for images whose mirror image means something else (digits, letters). `ahead`: how many of the next
    steps are made at once, each in a thread; they are the same for any number.
    """

    def __init__(
        self,
        pixels: Pixels,
        pre: Preprocess,
        batch: int,
        views: tuple[str, ...] = ("train",),
        seed: int = 0,
        *,
        flip: bool = True,
        crop: tuple[float, float] = (0.7, 1.0),
        ahead: int = 1,
    ) -> None:
        """Make batches of `batch` images; DataError when there are none, UsageError for an unknown view."""
        if not len(pixels):
            raise DataError("no images to make batches of; expected at least one")
        if batch < 1 or not 0 < crop[0] <= crop[1] <= 1:
            raise UsageError(
                f"batch {batch}, crop {crop}: expected a batch of at least 1 and 0 < from <= to <= 1"
            )
        made: dict[str, View] = {
            "plain": lambda images, _: images,
            "train": partial(making.crop_and_flip, area=crop, flip=flip),
            "weak": partial(making.shift_and_flip, flip=flip),
            "strong": partial(making.strong, flip=flip),
        }
        for name in views:
            if name not in made:
                raise UsageError(f"the view {name!r} is not known; {nearest(name, made)}")
        self.pixels, self.batch, self.seed = pixels, batch, seed % (1 << 63)
        self._views = {name: made[name] for name in views}
        self._scale, self._shift = _affine(pre)
        self._orders: dict[int, Tensor] = {}
        self._ordering = Lock()
        self._ahead, self._pool = ahead, ThreadPoolExecutor(ahead, "batches")
        self._next: dict[int, Future[RawBatch]] = {}

    @property
    def steps_per_pass(self) -> int:
        """Steps after which every image has come at least once."""
        return -(-len(self.pixels) // self.batch)

    def at(self, step: int) -> RawBatch:
        """The batch of `step` (0, 1, ...): the same for the same seed, whatever was asked for before."""
        foreseen, self._next = self._next, {}
        here = foreseen.pop(step, None)
        made = (here or self._pool.submit(self._make, step)).result()
        for later in range(step + 1, step + 1 + self._ahead):
            known = foreseen.pop(later, None)
            self._next[later] = known or self._pool.submit(self._make, later)
        for unwanted in foreseen.values():
            unwanted.cancel()
        return made

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, step: int) -> RawBatch:
        index = self._index(step)
        raw = self.pixels.take(index).permute(0, 3, 1, 2)
        views = {}
        for name, view in self._views.items():
            generator = torch.Generator().manual_seed(_seed(self.seed, step + 1, VIEWS.index(name)))
            images = view(raw, generator).to(torch.float32)
            views[name] = _normalised(images, self._scale, self._shift)
        labels = None if self.pixels.labels is None else self.pixels.labels[index]
        return RawBatch(index, labels, views)

    def _index(self, step: int) -> Tensor:
        count = len(self.pixels)
        place = torch.arange(step * self.batch, (step + 1) * self.batch)
        passes = place // count
        index = torch.empty_like(place)
        for number in sorted(set(passes.tolist())):
            here = passes == number
            index[here] = self._order(number)[place[here] - number * count]
        return index

    def _order(self, number: int) -> Tensor:
        with self._ordering:
            if number not in self._orders:
                self._orders = {k: v for k, v in self._orders.items() if k >= number - 1}
                generator = torch.Generator().manual_seed(_seed(self.seed, 0, number))
                self._orders[number] = torch.randperm(len(self.pixels), generator=generator)
            return self._orders[number]


def plain(pixels: Pixels, pre: Preprocess, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield the whole set in order: index (B,), normalised float32 (B, 3, H, W), labels (B,) or None."""
    scale, shift = _affine(pre)
    for start in range(0, len(pixels), batch):
        index = torch.arange(start, min(start + batch, len(pixels)))
        raw = pixels.take(index).permute(0, 3, 1, 2)
        labels = None if pixels.labels is None else pixels.labels[index]
        yield index, _normalised(raw.to(torch.float32), scale, shift), labels


def normalised(pixels: Pixels, pre: Preprocess, index: Tensor) -> Tensor:
    """Images `index` (B,) as the network sees them: float32 (B, 3, H, W)."""
    return _normalised(pixels.take(index).permute(0, 3, 1, 2).to(torch.float32), *_affine(pre))


def _affine(pre: Preprocess) -> tuple[Tensor, Tensor]:
    scale, shift = (torch.from_numpy(v).view(1, 3, 1, 1) for v in scale_shift(pre))
    return scale, shift


def _normalised(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (images * scale + shift).contiguous()


def _seed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
