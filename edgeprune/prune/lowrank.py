"""A layer as two thinner ones, in closed form from what enters it on target images; no label and no training.

The paper's (Masana et al., Domain-Adaptive Deep Network Compression, ICCV 2017): `svd`, `svd-bias` and `dalr`,
for fully connected layers. Ours: the centred form with its bias, ridge relative to the mean energy of an input,
convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from edgeprune.errors import PlanError

FORMS = ("svd", "svd-bias", "dalr", "centred")
WITH_BIAS = ("svd-bias", "centred")  # forms whose pair has a bias, even where its layer has none
MOST_BYTES = (
    2**30
)  # of what is kept of the inputs of all layers that are watched at once; solving takes thrice that


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
        """No sample yet, of `size` values each: their Gram matrix is kept, else (MOST_BYTES) some samples."""
        total, square = torch.zeros(size, dtype=torch.float64), size if size_of(size) <= MOST_BYTES else 0
        gram = torch.zeros(square, square, dtype=torch.float64)
        return Moments(gram, total) if square else Held(gram, total)

    @property
    def mean(self) -> Tensor:
        """(n,)."""
        return self.total / self.count

    def add(self, rows: Tensor) -> None:
        """Take in samples (p, n)."""
        x = rows.detach().double().cpu()
        self.gram += x.T @ x
        self.total += x.sum(0)
        self.count += len(x)

    def outputs(self, weight: Tensor) -> Tensor:
        """W G W^T (m, m), G the centred Gram matrix."""
        return weight @ self._gram(centred=True) @ weight.T

    def shrunk(self, weight: Tensor, ridge: float, *, centred: bool) -> tuple[Tensor, Tensor]:
        """W S (m, n) with S = G (G + l I)^-1, and W G (m, n); l is `ridge` times the mean of G's diagonal."""
        gram = self._gram(centred=centred)
        damping = (ridge * gram.trace() / len(gram)).clamp_min(1e-12)
        product = weight @ gram
        return torch.linalg.solve(
            gram + damping * torch.eye(len(gram), dtype=gram.dtype), product, left=False
        ), product

    def _gram(self, *, centred: bool) -> Tensor:
        return self.gram - self.count * torch.outer(self.mean, self.mean) if centred else self.gram


@dataclass
class Held(Moments):
    """The same of samples X (p, n) that are themselves kept, when an n x n matrix is too large: `gram` is empty.

    At most `most` are, every second, fourth ... of all that came, and all sums are of these. For p samples the p x p
    matrix says the same as the n x n: G (G + l I)^-1 = X^T (X X^T + l I)^-1 X.
    """

    kept: list[Tensor] = field(default_factory=list)
    every: int = 1
    came: int = 0

    @property
    def most(self) -> int:
        """How many fit into MOST_BYTES, next to their p x p matrix."""
        return max(2, MOST_BYTES // (8 * len(self.total)))

    def add(self, rows: Tensor) -> None:
        """Take in samples (p, n)."""
        x = rows.detach().double().cpu()
        some = x[-self.came % self.every :: self.every].clone()
        self.came += len(x)
        self.kept.append(some)
        self.total += some.sum(0)
        self.count += len(some)
        while self.count > self.most:
            self.every *= 2
            self.kept = [torch.cat(self.kept)[::2].clone()]
            self.total, self.count = self.kept[0].sum(0), len(self.kept[0])

    def outputs(self, weight: Tensor) -> Tensor:
        """W G W^T (m, m), G the centred Gram matrix."""
        made = self._samples(centred=True) @ weight.T
        return made.T @ made

    def shrunk(self, weight: Tensor, ridge: float, *, centred: bool) -> tuple[Tensor, Tensor]:
        """W S and W G, (m, n) each, as in Moments."""
        x = self._samples(centred=centred)
        made, small = weight @ x.T, x @ x.T
        damping = (ridge * small.trace() / x.shape[1]).clamp_min(1e-12)
        eye = torch.eye(len(small), dtype=small.dtype)
        return torch.linalg.solve(small + damping * eye, made, left=False) @ x, made @ x

    def _samples(self, *, centred: bool) -> Tensor:
        x = torch.cat(self.kept)
        return x - self.mean if centred else x


def size_of(size: int) -> int:
    """Bytes of a Gram matrix of samples of `size` values."""
    return 8 * size * size


def groups(sizes: Mapping[str, int]) -> list[list[str]]:
    """Layers (name -> values of an input) in their order, as many at once as MOST_BYTES hold what is kept of each."""
    found: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        need = min(size_of(size), MOST_BYTES)
        if not found or need > room:
            found.append([])
            room = MOST_BYTES
        found[-1].append(name)
        room -= need
    return found


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
    values = torch.linalg.eigvalsh(moments.outputs(weight)).flip(0).clamp_min(0)
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
    if form.startswith("svd"):
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        second, first = u[:, :rank], s[:rank, None] * v[:rank]
    else:
        shrunk, product = moments.shrunk(weight, ridge, centred=form == "centred")
        energy = product @ (shrunk if form == "centred" else weight).T
        second = torch.linalg.eigh((energy + energy.T) / 2)[1].flip(1)[:, :rank]
        first = second.T @ shrunk
    if form in WITH_BIAS:
        return Factors(first, second, b + (weight - second @ first) @ moments.mean)
    return Factors(first, second, None if bias is None else b)
