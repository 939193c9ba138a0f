"""What the validators need a network for: scores of the weights as they are now, on images seen without labels.

Must cost little (at most 1,024 target images, half as many mixed ones and 512 of the source, at each look), change
nothing in the network, and draw no number from the global generator, which belongs to training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune import estimate, inference, select
from edgeprune.data import batches
from edgeprune.data.pixels import Pixels
from edgeprune.errors import UsageError
from edgeprune.model import Network
from edgeprune.waist import Needs

IMAGES = 1024
MIXED = 256  # pairs of each kind
SOURCE_IMAGES = 512
PSEUDO = 16  # images that a network's own statistics weigh as
ENOUGH = 256  # images that need no help of theirs
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the target, in a blend of batch-norm statistics


class Validator:
    """Scores a network's weights as they are at each call; batch-norm statistics as at the first call are the origin.

    `origin` is what a snapshot keeps; `answers` (N,) are those on the target's images at the last call, None before it.
    source: labelled images that took no part in training, or None. frozen: training normalises the source by the
    network's statistics, not by its own.
    """

    def __init__(
        self, network: Network, target: Pixels, source: Pixels | None = None, *, frozen: bool = False
    ) -> None:
        self.network, self.target, self.frozen = network, target.spread(IMAGES), frozen
        self.source = source.spread(SOURCE_IMAGES) if source is not None else None
        self.origin: dict[str, Tensor] = {}
        self.answers: Tensor | None = None

    def __call__(self) -> dict[str, float]:
        """Every validator's score: those of select.validators, mixval, drift; with a source, source and dev."""
        module = self.network.module
        if not self.origin:
            self.origin = statistics(module)
        features, logits = inference.predict(self.network, self.target)
        self.answers = logits.argmax(1)
        scores = select.validators(features, logits)
        scores["mixval"] = mixval(self.network, self.target, logits)
        scores["drift"] = drift(self.origin, statistics(module))
        if self.source is not None:
            held, answers = self._of_source(self.source)
            assert self.source.labels is not None
            wrong = answers.argmax(1).ne(self.source.labels).double()
            scores["source"] = 1 - float(wrong.mean())
            finite = bool(torch.isfinite(held).all() and torch.isfinite(features).all())
            if len(held) >= estimate.FEWEST:
                scores["dev"] = -select.deep_embedded_risk(held, wrong, features) if finite else -1e6
        return scores

    def _of_source(self, source: Pixels) -> tuple[Tensor, Tensor]:
        """Features and logits of the source under batch-norm statistics of its own, if training has it so: else a
        change of the statistics alone would look like something forgotten.
        """
        if self.frozen:
            return inference.predict(self.network, source)
        module = self.network.module
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        inference.reestimate_batchnorm(module, source, self.network.preprocess)
        found = inference.predict(self.network, source)
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(before[name])
        return found


def mixval(network: Network, pixels: Pixels, logits: Tensor, share: float = 0.55, seed: int = 0) -> float:
    """Share, in 0..1, of mixed images that get the label of their larger part; logits (N, K) are of the plain images.

    x = 0.55 x_a + 0.45 x_b: mean of the agreement over pairs of two predicted classes and that over pairs of one (Hu et
    al., Mixed Samples as Probes for Unsupervised Model Selection in Domain Adaptation, NeurIPS 2023). At most 256 pairs
    of each kind, drawn once, are ours: the paper takes all images three times. 0 when all images get one class.
    """
    if not torch.isfinite(logits).all():
        return 0.0
    label = logits.argmax(1)
    inter, intra = pairs(label, seed)
    if not len(inter):
        return 0.0
    first, second = torch.cat([inter, intra]).T
    agrees = []
    with inference.evaluating(network.module):
        for a, b in zip(first.split(128), second.split(128), strict=True):
            x = share * batches.normalised(pixels, network.preprocess, a)
            x += (1 - share) * batches.normalised(pixels, network.preprocess, b)
            agrees.append(network.module(inference.shown(network.module, x)).argmax(1).cpu() == label[a])
    right = torch.cat(agrees).double()
    found = [float(part.mean()) for part in (right[: len(inter)], right[len(inter) :]) if len(part)]
    return math.fsum(found) / len(found)


def pairs(label: Tensor, seed: int = 0, most: int = MIXED) -> tuple[Tensor, Tensor]:
    """Index pairs (P, 2) of images with two predicted labels, and with one; label (N,). The same for the same seed."""
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    ring = torch.stack([order, order.roll(1)], 1)
    sorted_ = order[label[order].argsort(stable=True)]
    chain = torch.stack([sorted_[:-1], sorted_[1:]], 1)
    inter = ring[label[ring[:, 0]] != label[ring[:, 1]]]
    intra = chain[label[chain[:, 0]] == label[chain[:, 1]]]
    return tuple(_spread(found, most) for found in (inter, intra))  # type: ignore[return-value]


def _spread(rows: Tensor, most: int) -> Tensor:
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long()]


def share_of(images: int) -> float:
    """Share of the target's batch-norm statistics when there are so many images: 1, or n / (n + 16) for fewer than 256.

    Schneider et al., NeurIPS 2020, arXiv 2006.16971, eq. 1, where the source's statistics weigh as much as N = 16
    images; that 256 are enough by themselves is ours.
    """
    return images / (images + PSEUDO) if images < ENOUGH else 1.0


def take_statistics(network: Network, target: Pixels, blend: float = 1.0) -> float:
    """Put the target's statistics into batch-norm, mixed with the network's own by the share `blend`; 0: by share_of.

    Returns the share.
    """
    share = blend or share_of(len(target))
    inference.reestimate_batchnorm(network.module, target, network.preprocess, blend=share)
    return share


def begin_statistics(network: Network, target: Pixels, needs: Needs, *, partial: bool) -> float:
    """What training begins with: statistics that stay as they are (settle_batchnorm), or the target's; the share."""
    if needs.frozen_statistics:
        return settle_batchnorm(network, target, partial=partial)
    return take_statistics(network, target, needs.blend)


def require_batchnorm(network: Network) -> None:
    """UsageError when there are no batch-norm statistics to take."""
    if not statistics(network.module):
        raise UsageError(
            f"{network.spec} has no batch-norm layer with running statistics, and the objective changes nothing else: "
            "take another --objective"
        )


def settle_batchnorm(network: Network, target: Pixels, *, partial: bool = False) -> float:
    """Blend the target's statistics into batch-norm by one of SHARES, and return it: that of the most information.

    Information is mean entropy against entropy of the mean, as select.validators has it, on up to 512 images. A blend
    often beats both ends when the shift is small or the images are few (Schneider et al., NeurIPS 2020, arXiv
    2006.16971); choosing the share without labels is ours. partial: statistics of a target without some classes spread
    its answers over them, which information would reward; so the surest answers decide that have not collapsed.
    """
    module, probe = network.module, target.spread(512)
    own = _running(module)
    if not own:
        return 1.0
    take_statistics(network, target)
    theirs = _running(module)
    scores = []
    for share in SHARES:
        _blend(module, own, theirs, share)
        scores.append(select.validators(*inference.predict(network, probe)))
    best = SHARES[select.surest(scores, len(network.classes)) if partial else _most(scores, "information")]
    _blend(module, own, theirs, best)
    return best


def _most(scores: Sequence[Mapping[str, float]], name: str) -> int:
    return max(range(len(scores)), key=lambda i: scores[i][name])


def _running(module: nn.Module) -> dict[str, Tensor]:
    ends = ("running_mean", "running_var")
    return {k: v.clone() for k, v in module.state_dict().items() if k.endswith(ends)}


def _blend(module: nn.Module, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], share: float) -> None:
    now = module.state_dict()
    for key, value in own.items():
        now[key].copy_(value.lerp(theirs[key], share))


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """Running mean and variance of every batch-norm layer, on the CPU: "layer.mean" and "layer.var" -> (C,)."""
    found: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None:
            found[f"{name}.mean"] = part.running_mean.detach().cpu().clone()
            found[f"{name}.var"] = part.running_var.detach().cpu().clone()
    return found


def drift(origin: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float:
    """How far batch-norm statistics moved: mean over layers of the median over channels; 0 without such layers.

    |mean - mean_0| / sd_0 + |log(sd / sd_0)| for each channel; a million when one is not finite. Ours.
    """
    moved = []
    for key in origin:
        if not key.endswith(".mean"):
            continue
        name = key.removesuffix("mean")
        sd0 = origin[f"{name}var"].double().clamp_min(1e-10).sqrt()
        sd = now[f"{name}var"].double().clamp_min(1e-10).sqrt()
        far = (now[key].double() - origin[key].double()).abs() / sd0 + (sd / sd0).log().abs()
        if not torch.isfinite(far).all():
            return 1e6
        moved.append(float(far.median()))
    return math.fsum(moved) / len(moved) if moved else 0.0
