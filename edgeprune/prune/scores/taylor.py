"""Taylor: by how much the answer changes when a channel goes, from derivatives at gates of one.

Without labels (ours). Let z be the gates of all channels, p(x) the network's answer with all gates 1, p_z(x)
with gates z, and D(z) = E_x KL(p(x) || p_z(x)). At z = 1, D and its gradient are zero, so a first-order score
sees nothing. The second derivative there is exactly the expected Fisher information of the gates (the
Gauss-Newton matrix; its other part carries the zero gradient), hence for the removal of channel c (z_c: 1 ->
0)

    D ~ 1/2 d2D/dz_c2 = 1/2 E_x sum_k p_k(x) ( d log p_k(x) / d z_c )^2 .

The sum over classes is exact when there are no more than `exact` of them, else classes are drawn from p
(unbiased). Outputs that are not logits (N,K) are taken as the mean of a Gaussian: KL = 1/2 ||y - y_z||^2 /
numel, and the derivative of random signs of y in place of log p_k. It is the same quantity that distillation
minimises.

With labels: Molchanov et al., CVPR 2019, arXiv 1906.10771, eq. 9-10 at gates: E over batches of (d loss / d
z_c)^2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgeprune.errors import DataError
from edgeprune.prune.coupling import Coupling, Couplings
from edgeprune.prune.scores.gates import Gates, gated
from edgeprune.prune.scores.group import gather


@dataclass(frozen=True)
class Taylor:
    """Expected divergence from the dense answer when a channel goes, on unlabelled images; no normalisation
    needed.

    batches: images (B,3,H,W), or tuples of arguments; read once a call. exact, draws: see the top of this
    file.
    """

    looks: ClassVar[str] = "target"
    batches: Iterable[Any]
    exact: int = 10
    draws: int = 4
    seed: int = 0

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep: nats lost per image, to second order."""
        total = {c.root: torch.zeros(c.width, dtype=torch.double) for c in couplings}
        count = 0
        generator = torch.Generator().manual_seed(self.seed)
        with gated(module, couplings) as gates:
            for batch in self.batches:
                args = batch if isinstance(batch, tuple) else (batch,)
                count += len(args[0])
                for share, scalar in self._probes(module, gates, args, generator):
                    for root, g in slopes(module, couplings, gates, scalar).items():
                        total[root] += 0.5 * share * g.square().sum(0)
        if not count:
            raise DataError("taylor needs images to look at and received none; give --target DIR")
        return {root: t / count for root, t in total.items()}

    def _probes(
        self, module: nn.Module, gates: Gates, args: tuple[Any, ...], generator: torch.Generator
    ) -> Iterator[tuple[float, Tensor]]:
        """Scalars whose squared per-image slopes, weighted and summed, are the Fisher information."""
        gates.start(args[0])
        with torch.enable_grad():
            out = module(*args)
            if not (isinstance(out, Tensor) and out.ndim == 2):
                leaves = [t for t in _tensors(out) if t.is_floating_point() and t.requires_grad]
                for _ in range(self.draws):
                    yield 1 / self.draws, _signs(leaves, len(args[0]), generator)
                return
            logp = out.log_softmax(1)
            p = logp.detach().exp()
            if p.shape[1] <= self.exact:
                for k in range(p.shape[1]):
                    yield 1.0, (p[:, k].sqrt() * logp[:, k]).sum()
                return
            for _ in range(self.draws):
                drawn = torch.multinomial(p.cpu().float(), 1, generator=generator).to(p.device)
                yield 1 / self.draws, logp.gather(1, drawn).sum()


@dataclass(frozen=True)
class TaylorLabels:
    """Squared first-order change of the cross entropy on labelled source images.

    batches: (images (B,3,H,W), labels (B,)); read once a call.
    """

    looks: ClassVar[str] = "source"
    batches: Iterable[tuple[Tensor, Tensor]]

    def __call__(self, module: nn.Module, couplings: Couplings) -> dict[str, Tensor]:
        """Scores (C,) of each coupling that can be cut, larger = keep."""
        total = {c.root: torch.zeros(c.width, dtype=torch.double) for c in couplings}
        count = 0
        with gated(module, couplings) as gates, torch.enable_grad():
            for images, labels in self.batches:
                gates.start(images)
                loss = nn.functional.cross_entropy(module(images), labels)
                count += 1
                for root, g in slopes(module, couplings, gates, loss).items():
                    total[root] += g.sum(0).square()
        if not count:
            raise DataError("taylor-labels needs labelled images and received none; give --source DIR")
        return {root: t / count for root, t in total.items()}


def slopes(module: nn.Module, couplings: Couplings, gates: Gates, scalar: Tensor) -> dict[str, Tensor]:
    """{root: (B, C)} derivatives of the scalar by the gates, float64 on the CPU.

    A coupling that could not be gated everywhere has (1, C): the sum over images of w * d scalar / d w over the weights
    that make the channel, which is the derivative by its gate there, but images may cancel.
    """
    missed = {c.root: _missed(module, c, gates) for c in couplings}
    doubtful = [c for c in couplings if missed[c.root] or c.root not in gates.values]
    names = {n for c in doubtful for n in (*missed[c.root], *(m.tensor for m in _makers(module, c)))}
    weights = {name: module.get_parameter(name) for name in sorted(names)}
    wanted = [*gates.values.values(), *weights.values()]
    found = torch.autograd.grad(scalar, wanted, retain_graph=True, allow_unused=True)
    by_name = dict(zip(weights, found[len(gates.values) :], strict=True))
    # what no gate is on, and took part: a head that runs in training alone did not
    passed = {root for root, some in missed.items() if any(by_name[name] is not None for name in some)}
    slopes = {}
    for root, g in zip(gates.values, found, strict=False):
        if g is not None and root not in passed:
            slopes[root] = g.double().cpu()
    for coupling in (c for c in doubtful if c.root not in slopes):
        parts = []
        for m in _makers(module, coupling):
            slope = by_name.get(m.tensor)
            if slope is not None:
                product = (slope * weights[m.tensor]).detach().double().movedim(m.dim, 0)
                parts.append(gather(product.reshape(len(product), -1).sum(1), m))
        if parts:
            slopes[coupling.root] = torch.stack(parts).sum(0)[None]
    return slopes


def _missed(module: nn.Module, coupling: Coupling, gates: Gates) -> list[str]:
    """The tensors that read a coupling and whose layer no gate was put before."""
    names = dict(module.named_parameters(remove_duplicate=False))
    return [
        m.tensor
        for m in coupling.members
        if m.axis == "in"
        and m.tensor in names
        and (m.tensor.rpartition(".")[0], coupling.root) not in gates.reached
    ]


def _makers(module: nn.Module, coupling: Coupling) -> list[Any]:
    names = dict(module.named_parameters(remove_duplicate=False))
    return [m for m in coupling.members if m.axis == "out" and m.tensor in names and names[m.tensor].ndim > 1]


def _signs(leaves: list[Tensor], images: int, generator: torch.Generator) -> Tensor:
    """Random signs times the outputs, scaled so that squared slopes are those of the mean squared change."""
    size = sum(t.numel() for t in leaves) / images
    total = torch.zeros((), dtype=leaves[0].dtype, device=leaves[0].device)
    for t in leaves:
        sign = torch.randint(0, 2, t.shape, generator=generator, dtype=torch.float32).mul_(2).sub_(1)
        total = total + (t * sign.to(t)).sum() / size**0.5
    return total


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]
