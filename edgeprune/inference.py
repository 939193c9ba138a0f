"""A network over a whole set of images: features and logits, accuracy, agreement, batch-norm statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune.data.batches import plain
from edgeprune.data.pixels import Pixels
from edgeprune.errors import DataError
from edgeprune.images import Preprocess
from edgeprune.model import Network


class Taps:
    """Keeps what enters the classifier and other chosen layers at each forward pass of a module."""

    def __init__(self, module: nn.Module, classifier: str, layers: tuple[str, ...] = ()) -> None:
        """Attach; use as a context manager or call `close`."""
        self.features: Tensor | None = None
        self.layers: dict[str, Tensor] = {}
        self._hooks = [module.get_submodule(classifier).register_forward_pre_hook(self._classifier)]
        for name in layers:
            self._hooks.append(module.get_submodule(name).register_forward_pre_hook(self._layer(name)))

    def _classifier(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        self.features = x.mean((2, 3)) if x.ndim == 4 else x.flatten(1)

    def _layer(self, name: str):  # type: ignore[no-untyped-def]
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.layers[name] = args[0]

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
    """Evaluation mode and no gradients inside the block; each module's own mode comes back after it.

    A compiled module runs as it is written: compiled code need not see hooks that come and go (`Taps`).
    """
    modes = {part: part.training for part in module.modules()}
    compiled = vars(module).pop("_compiled_call_impl", None)
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if compiled is not None:
            vars(module)["_compiled_call_impl"] = compiled
        for part, mode in modes.items():
            part.training = mode


_FORMATS: WeakKeyDictionary[nn.Module, torch.memory_format] = WeakKeyDictionary()


def memory_format(module: nn.Module, images: Tensor) -> torch.memory_format:
    """How images (N, 3, H, W) should lie in memory for a network: channels last where that is right and fast.

    A CPU convolves such images up to half again as fast. A network that lays out what it computes by `view` takes
    contiguous ones alone, which is found out once a network, on two of `images`.
    """
    if module not in _FORMATS:
        found = torch.contiguous_format
        if any(isinstance(m, nn.Conv2d) for m in module.modules()):
            device = next(module.parameters()).device
            # whatever else is wrong, the call proper says
            with evaluating(module), _unwatched(module), contextlib.suppress(RuntimeError):
                module(images[:2].to(device, memory_format=torch.channels_last))
                found = torch.channels_last
        _FORMATS[module] = found
    return _FORMATS[module]


@contextmanager
def _unwatched(module: nn.Module) -> Iterator[None]:
    """Without hooks inside the block: what watches the network is to see no image twice."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    kept = [(vars(part), kind, vars(part)[kind]) for part in module.modules() for kind in kinds]
    for fields, kind, hooks in kept:
        fields[kind] = type(hooks)()
    try:
        yield
    finally:
        for fields, kind, hooks in kept:
            fields[kind] = hooks


def shown(module: nn.Module, images: Tensor) -> Tensor:
    """Images (N, 3, H, W) where the network is, and as it likes them."""
    device = next(module.parameters()).device
    return images.to(device).contiguous(memory_format=memory_format(module, images))


def predict(network: Network, pixels: Pixels, batch: int = 128) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits (N, K), float32 on the CPU, of every image in order; the network stays as it is."""
    features, logits = [], []
    with evaluating(network.module), Taps(network.module, network.classifier) as taps:
        for _, images, _ in plain(pixels, network.preprocess, batch):
            logits.append(network.module(shown(network.module, images)).float().cpu())
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
    with evaluating(module):
        return torch.cat(
            [module(shown(module, images)).float().cpu() for _, images, _ in plain(pixels, pre, batch)]
        )


@contextmanager
def tracking(module: nn.Module, on: bool) -> Iterator[None]:
    """Let batch-norm in training mode leave its running statistics alone inside the block, unless `on`."""
    norms = [] if on else [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def training(module: nn.Module, *, frozen: bool = False) -> None:
    """Put a network into training mode; `frozen`: batch-norm stays in evaluation mode."""
    module.train()
    for norm in module.modules() if frozen else ():
        if isinstance(norm, _BatchNorm):
            norm.eval()


@contextmanager
def several_values() -> Iterator[None]:
    """DataError in place of torch's, when batch-norm meets a single value per channel."""
    try:
        yield
    except ValueError as err:
        if "more than 1 value per channel" not in str(err):
            raise
        raise DataError(
            "a batch of one image is too few: batch-norm has one value per channel here; give more images, a larger "
            "--batch, or a larger --size"
        ) from err


class _Pooled:
    """Mean and variance over all the batches that entered a batch-norm layer, as though they were one.

    The layer computes each batch's by itself, so they are read from its running statistics, which take the last batch's
    alone (momentum 1) until `close`; reducing the maps once more would take as long as the whole forward.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm, self.count, self.momentum = norm, 0, norm.momentum
        self.before = {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)
        norm.momentum = 1.0
        self.hook = norm.register_forward_hook(self._take)

    def _take(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        new = args[0].numel() // args[0].shape[1]
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        mean, variance = self.norm.running_mean.double(), self.norm.running_var.double() * ((new - 1) / new)
        shift, total = mean - self.mean.to(mean), self.count + new
        self.squares = self.squares.to(mean) + new * variance + shift**2 * (self.count * new / total)
        self.mean, self.count = self.mean.to(mean) + shift * (new / total), total

    def close(self) -> None:
        """Leave the layer as it was."""
        self.hook.remove()
        self.norm.momentum = self.momentum
        with torch.no_grad():
            for name, buffer in self.norm.named_buffers(recurse=False):
                buffer.copy_(self.before[name])

    def blend_in(self, share: float) -> None:
        """Put `share` of the new statistics, the variance without bias, into the layer's."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        if self.count and mean is not None and variance is not None:
            mean.copy_(share * self.mean + (1 - share) * mean.double())
            variance.copy_(share * self.squares / max(1, self.count - 1) + (1 - share) * variance.double())


def reestimate_batchnorm(
    module: nn.Module,
    pixels: Pixels,
    pre: Preprocess,
    *,
    blend: float = 1.0,
    images: int = 2048,
    batch: int = 128,
) -> int:
    """Replace batch-norm statistics by those of up to `images` of the set, every image weighing the same.

    blend: share of the new statistics, 1 replaces and 0 keeps (for sets of few images). Returns how many batch-norm
    layers there were. Li et al. 2016, arXiv 1603.04779; pooling the batches' moments, batches spread over the set (its
    order may be by class) and the blend are ours.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    chosen = torch.linspace(0, len(pixels) - 1, min(images, len(pixels))).round().long()
    count = max(1, round(len(chosen) / batch))
    memory_format(
        module, next(plain(pixels.subset(chosen[:2].tolist()), pre, 2))[1]
    )  # before anything counts
    pooled = [_Pooled(norm) for norm in norms]
    try:
        with evaluating(module), several_values():
            for norm in norms:
                norm.train()
            for start in range(count):
                part = pixels.subset(chosen[start::count].tolist())
                for _, x, _ in plain(part, pre, len(part)):
                    module(shown(module, x))
    finally:
        for one in pooled:
            one.close()
    with torch.no_grad():
        for one in pooled:
            one.blend_in(blend)
    return len(norms)
