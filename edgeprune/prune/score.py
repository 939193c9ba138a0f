"""A criterion by the name a user types, on what a pruning job has: the network, target images, source images.

What they compute is in `edgeprune.prune.scores`, one criterion a file; here is which images each one looks
at: up to 512, evenly spaced over the set, in an order of chance, as the set's is mostly by class and a criterion may
look at the first batches alone. The same images in the same order at every call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune import catalog, inference
from edgeprune.data.batches import plain
from edgeprune.data.pixels import Pixels
from edgeprune.errors import UsageError
from edgeprune.images import Preprocess
from edgeprune.prune.coupling import Couplings

IMAGES = 512
BATCH = 32


def of(
    name: str,
    module: nn.Module,
    couplings: Couplings,
    pre: Preprocess,
    target: Pixels,
    source: Pixels | None = None,
    seed: int = 0,
    knobs: Mapping[str, Any] | None = None,
) -> Mapping[str, Tensor]:
    """Scores (C,) of every coupling that can be cut, larger = keep; no weight changes.

    name: of the catalogue. seed: of the criterion that draws. knobs: fields of the criterion. UsageError when it needs
    labelled source images and they are missing.
    """
    kind = catalog.load(catalog.SCORES, name, "score")
    if not any(True for _ in couplings):
        return {}
    found: Mapping[str, Tensor]
    drawn = {"seed": seed} if any(f.name == "seed" for f in fields(kind)) else {}
    asked = {**drawn, **(knobs or {})}
    if kind.looks == "":
        found = kind(**asked)(module, couplings)
    elif kind.looks == "target":
        found = kind(Images(target, pre, module), **asked)(module, couplings)
    elif source is None or source.labels is None:
        raise UsageError(
            f"--score {name} needs labelled source images: give --source DIR, or take --score measured"
        )
    else:
        found = kind(Labelled(source, pre, module), **asked)(module, couplings)
    return found


@dataclass(frozen=True)
class Images:
    """Some images of a set in batches (B,3,H,W), as `module` is shown them; iterable as often as wanted."""

    pixels: Pixels
    pre: Preprocess
    module: nn.Module

    def __iter__(self) -> Iterator[Tensor]:
        few = _some(self.pixels)
        return (inference.shown(self.module, images) for _, images, _ in plain(few, self.pre, BATCH))


@dataclass(frozen=True)
class Labelled:
    """Some images with their labels (B,), as `Images`."""

    pixels: Pixels
    pre: Preprocess
    module: nn.Module

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _, images, labels in plain(_some(self.pixels), self.pre, BATCH):
            assert labels is not None
            x = inference.shown(self.module, images)
            yield x, labels.to(x.device)


def _some(pixels: Pixels) -> Pixels:
    rows = torch.linspace(0, len(pixels) - 1, min(IMAGES, len(pixels))).round().long()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return pixels.subset(rows[order].tolist())
