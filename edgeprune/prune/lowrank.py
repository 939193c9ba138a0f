"""A layer as two thinner ones, in closed form from what enters it on target images; no label and no training.

The paper's (Masana et al., Domain-Adaptive Deep Network Compression, ICCV 2017): `svd`, `svd-bias` and `dalr`,
for fully connected layers. Ours: the centred form with its bias, ridge relative to the mean energy of an input,
convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from edgeprune.errors import PlanError

FORMS = ("svd", "svd-bias", "dalr", "centred")


@dataclass
class Moments:
    """Sums over samples x (n,) that entered a layer, float64: memory does not grow with the number of images.

    positions: products of the weight with one sample, an image, in all calls of the last forward.
    """

    gram: Tensor
    total: Tensor
    count: int = 0
    positions: float = 0.0

    @staticmethod
    def of(size: int) -> Moments:
        """No sample yet, of `size` values each."""
        return Moments(torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64))

    def add(self, rows: Tensor) -> None:
        """Take in samples (p, n)."""
        x = rows.detach().double().cpu()
        self.gram += x.T @ x
        self.total += x.sum(0)
        self.count += len(x)


@dataclass(frozen=True)
class Factors:
    """What replaces W (m, n): first (k, n), then second (m, k), then bias (m,) or None."""

    first: Tensor
    second: Tensor
    bias: Tensor | None


def fits(layer: nn.Module) -> bool:
    """Whether a layer can become a pair: linear, or an ungrouped two-dimensional convolution padded by zeros."""
    if type(layer) is nn.Linear:
        return True
    return type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"


def matrix(layer: nn.Module) -> Tensor:
    """The weight of a layer as (m, n) float64; PlanError when the layer cannot become a pair."""
    if not fits(layer):
        raise PlanError(
            f"{type(layer).__name__} cannot become a low-rank pair: expected Linear, or Conv2d with groups=1 "
            "and zero padding; leave the layer as it is"
        )
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().double().cpu().flatten(1)


def rows(layer: nn.Module, x: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    """Samples (p, n) that a layer multiplies: rows, or patches with their padding at `positions` places an image."""
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2)
    size, step = layer.kernel_size, layer.stride
    if isinstance(layer.padding, str):
        reach = [
            d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, size, strict=True)
        ]
        pads = [side for r in reversed(reach) for side in (r // 2, r - r // 2)]
    else:
        pads = [side for p in reversed(layer.padding) for side in (int(p), int(p))]
    patches = f.unfold(f.pad(x, pads), size, layer.dilation, 0, step).transpose(1, 2)
    if patches.shape[1] > positions:
        patches = patches[:, torch.randperm(patches.shape[1], generator=generator)[:positions].to(x.device)]
    return patches.flatten(0, 1)


@contextmanager
def watching(module: nn.Module, names: list[str], positions: int) -> Iterator[Mapping[str, Moments]]:
    """Inside the block, every forward adds to the moments of the layers called `names`."""
    found = {name: Moments.of(matrix(module.get_submodule(name)).shape[1]) for name in names}

    def hook(name: str):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(0)  # of each layer: what else is watched changes nothing

        def see(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            found[name].add(rows(layer, args[0], positions, generator))
            found[name].positions += out.numel() / len(layer.weight) / images[0]  # type: ignore[arg-type]

        return see

    images = [1]

    def begin(entered: nn.Module, args: tuple[Tensor, ...]) -> None:
        images[0] = len(args[0])
        for one in found.values():
            one.positions = 0.0

    hooks = [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    hooks.append(module.register_forward_pre_hook(begin))
    try:
        yield found
    finally:
        for one in hooks:
            one.remove()


def spectrum(weight: Tensor, moments: Moments) -> Tensor:
    """Share (m + 1,) of the centred output energy that is lost at each rank 0..m."""
    mean = moments.total / moments.count
    gram = moments.gram - moments.count * torch.outer(mean, mean)
    values = torch.linalg.eigvalsh(weight @ gram @ weight.T).flip(0).clamp_min(0)
    lost = values.sum() - torch.cat([values.new_zeros(1), values.cumsum(0)])
    share: Tensor = lost.clamp_min(0) / values.sum().clamp_min(1e-30)
    return share


def factors(
    weight: Tensor,
    bias: Tensor | None,
    moments: Moments,
    rank: int,
    form: str = "centred",
    ridge: float = 1e-3,
) -> Factors:
    """The pair of rank `rank` for W (m, n) and b (m,): one of FORMS; ridge in units of the mean energy of an input."""
    b = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.detach().double().cpu()
    mean = moments.total / moments.count
    if form.startswith("svd"):
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        second, first = u[:, :rank], s[:rank, None] * v[:rank]
    else:
        gram = moments.gram
        if form == "centred":
            gram = gram - moments.count * torch.outer(mean, mean)
        damping = (ridge * gram.trace() / len(gram)).clamp_min(1e-12)
        shrunk = torch.linalg.solve(gram + damping * torch.eye(len(gram), dtype=gram.dtype), gram)
        energy = (
            weight
            @ gram
            @ (shrunk if form == "centred" else torch.eye(len(gram), dtype=gram.dtype))
            @ weight.T
        )
        second = torch.linalg.eigh((energy + energy.T) / 2)[1].flip(1)[:, :rank]
        first = second.T @ weight @ shrunk.T
    if form in ("svd-bias", "centred"):
        return Factors(first, second, b + (weight - second @ first) @ mean)
    return Factors(first, second, None if bias is None else b)
