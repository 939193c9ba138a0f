"""A network over a whole set of images: features and logits, accuracy, agreement, batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune.data.batches import plain
from edgeprune.data.pixels import Pixels
from edgeprune.errors import DataError
from edgeprune.images import Preprocess
from edgeprune.model import Network


class Taps:
    """Keeps what enters the classifier, and what chosen layers put out, at each forward pass of a module."""

    def __init__(self, module: nn.Module, classifier: str, layers: tuple[str, ...] = ()) -> None:
        """Attach; use as a context manager or call `close`."""
        self.features: Tensor | None = None
        self.layers: dict[str, Tensor] = {}
        self._hooks = [module.get_submodule(classifier).register_forward_pre_hook(self._classifier)]
        for name in layers:
            self._hooks.append(module.get_submodule(name).register_forward_hook(self._layer(name)))

    def _classifier(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        self.features = x.mean((2, 3)) if x.ndim == 4 else x.flatten(1)

    def _layer(self, name: str):  # type: ignore[no-untyped-def]
        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.layers[name] = output

        return keep

    def close(self) -> None:
        """Detach."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside the block; each module's own mode comes back after it."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def predict(network: Network, pixels: Pixels, batch: int = 128) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits (N, K), float32 on the CPU, of every image in order; the network stays as it is."""
    device = next(network.module.parameters()).device
    features, logits = [], []
    with evaluating(network.module), Taps(network.module, network.classifier) as taps:
        for _, images, _ in plain(pixels, network.preprocess, batch):
            logits.append(network.module(images.to(device)).float().cpu())
            assert taps.features is not None
            features.append(taps.features.float().cpu())
    return torch.cat(features), torch.cat(logits)


def evaluate(network: Network, pixels: Pixels) -> float:
    """Share of the labelled images, in 0..1, whose highest logit is their label; DataError without labels."""
    if pixels.labels is None:
        raise DataError("accuracy needs labelled images; expected one folder a class")
    return float((predict(network, pixels)[1].argmax(1) == pixels.labels).double().mean())


def logits_of(module: nn.Module, pixels: Pixels, pre: Preprocess, batch: int = 128) -> Tensor:
    """Logits (N, K) of any module, float32 on the CPU."""
    device = next(module.parameters()).device
    with evaluating(module):
        return torch.cat([module(images.to(device)).float().cpu() for _, images, _ in plain(pixels, pre, batch)])


def reestimate_batchnorm(
    module: nn.Module, pixels: Pixels, pre: Preprocess, *, blend: float = 1.0, images: int = 2048, batch: int = 128
) -> int:
    """Replace batch-norm statistics by those of up to `images` of the set, averaged without momentum.

    blend: share of the new statistics, 1 replaces and 0 keeps (for sets of few images). Every image weighs the same.
    Returns how many batch-norm layers there were. Li et al. 2016, arXiv 1603.04779; the cumulative average and the
    blend are ours.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    before = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]  # type: ignore[union-attr]
    momenta, modes = [m.momentum for m in norms], {part: part.training for part in module.modules()}
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a plain average over batches
    device = next(module.parameters()).device
    chosen = torch.linspace(0, len(pixels) - 1, min(images, len(pixels))).round().long()
    count = max(1, round(len(chosen) / batch))  # batches of equal size, so that the plain average is fair
    with torch.no_grad():
        for part in torch.tensor_split(chosen, count):
            for _, x, _ in plain(pixels.subset(part.tolist()), pre, len(part)):
                module(x.to(device))
    for norm, momentum, (mean, variance) in zip(norms, momenta, before, strict=True):
        norm.momentum = momentum
        norm.running_mean.mul_(blend).add_(mean, alpha=1 - blend)  # type: ignore[union-attr]
        norm.running_var.mul_(blend).add_(variance, alpha=1 - blend)  # type: ignore[union-attr]
    for part, mode in modes.items():
        part.training = mode
    return len(norms)
