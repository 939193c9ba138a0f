"""The criteria by the names a user types, each on what a pruning job has: the network, target images, source
images.

What they compute is in `edgeprune.prune.scores`, one criterion a file; here is which images each one looks
at: up to 512, evenly spaced over the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgeprune.data.batches import plain
from edgeprune.data.pixels import Pixels
from edgeprune.errors import UsageError
from edgeprune.images import Preprocess
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.scores import Score
from edgeprune.prune.scores import activation as activations
from edgeprune.prune.scores import taylor as taylors
from edgeprune.prune.scores.bn_scale import BNScale as _BNScale
from edgeprune.prune.scores.fpgm import FPGM as _FPGM
from edgeprune.prune.scores.lamp import LAMP as _LAMP
from edgeprune.prune.scores.magnitude import Magnitude as _Magnitude
from edgeprune.prune.scores.random import Random as _Random

IMAGES = 512
BATCH = 32


@dataclass(frozen=True)
class _Criterion:
    """One name. The call returns (C,) scores of every coupling that can be cut, larger = keep; no weight
    changes.
    """

    make: ClassVar[Callable[..., Score]]
    looks: ClassVar[str] = ""

    def __call__(
        self,
        module: nn.Module,
        dense: nn.Module,
        target: Pixels,
        pre: Preprocess,
        couplings: Couplings,
        source: Pixels | None = None,
    ) -> dict[str, Tensor]:
        """Scores of every coupling that can be cut. UsageError when labelled source images are needed and
        missing.
        """
        device = next(module.parameters()).device
        make = type(self).make
        if not self.looks:
            return make()(module, couplings)
        if self.looks == "target":
            return make(Images(target, pre, device))(module, couplings)
        if source is None or source.labels is None:
            raise UsageError(
                "this score needs labelled source images: give --source DIR, or take --score taylor"
            )
        return make(Labelled(source, pre, device))(module, couplings)


@dataclass(frozen=True)
class Images:
    """Some images of a set in batches (B,3,H,W), on a device; iterable as often as wanted."""

    pixels: Pixels
    pre: Preprocess
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]:
        return (images.to(self.device) for _, images, _ in plain(some(self.pixels), self.pre, BATCH))


@dataclass(frozen=True)
class Labelled:
    """Some images with their labels (B,), as `Images`."""

    pixels: Pixels
    pre: Preprocess
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _, images, labels in plain(some(self.pixels), self.pre, BATCH):
            assert labels is not None
            yield images.to(self.device), labels.to(self.device)


def some(pixels: Pixels) -> Pixels:
    """Up to 512 images, evenly spaced."""
    chosen = torch.linspace(0, len(pixels) - 1, min(IMAGES, len(pixels))).round().long()
    return pixels.subset(chosen.tolist())


class Magnitude(_Criterion):
    """See `edgeprune.prune.scores.magnitude`."""

    make = _Magnitude


class BNScale(_Criterion):
    """See `edgeprune.prune.scores.bn_scale`."""

    make = _BNScale


class LAMP(_Criterion):
    """See `edgeprune.prune.scores.lamp`."""

    make = _LAMP


class FPGM(_Criterion):
    """See `edgeprune.prune.scores.fpgm`."""

    make = _FPGM


class Random(_Criterion):
    """See `edgeprune.prune.scores.random`."""

    make = _Random


class Activation(_Criterion):
    """See `edgeprune.prune.scores.activation`."""

    make, looks = activations.Activation, "target"


class Taylor(_Criterion):
    """See `edgeprune.prune.scores.taylor`."""

    make, looks = taylors.Taylor, "target"


class TaylorLabels(_Criterion):
    """See `edgeprune.prune.scores.taylor`; needs labelled source images."""

    make, looks = taylors.TaylorLabels, "source"
