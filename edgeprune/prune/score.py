"""Criteria: how much each channel of a coupling is worth, (C,) a coupling, larger = keep. Weights are never touched."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeprune.data.batches import plain
from edgeprune.data.pixels import Pixels
from edgeprune.images import Preprocess
from edgeprune.prune.coupling import Coupling, Couplings

TAYLOR_IMAGES = 512


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters(remove_duplicate=False))


def per_channel(coupling: Coupling, values: dict[str, Tensor]) -> list[Tensor]:
    """For each member the sum of `values` (parameter name -> per-entry values) over the slices of each channel: (C,)."""
    found = []
    for member in coupling.members:
        value = values.get(member.tensor)
        if value is None or value.ndim <= member.dim:
            continue
        axis = value.movedim(member.dim, 0).flatten(1).sum(1) if value.ndim > 1 else value
        if max((i for s in member.slices for i in s), default=0) >= len(axis):
            continue  # the input axis of a grouped convolution counts channels, not columns of its weight
        index = torch.tensor([i for s in member.slices for i in s], device=axis.device)
        owner = torch.tensor([c for c, s in enumerate(member.slices) for _ in s], device=axis.device)
        found.append(axis.new_zeros(coupling.width).index_add_(0, owner, axis[index]))
    return found


class Magnitude:
    """Mean over the coupled tensors of the squared L2 norm of each channel, relative to the coupling's mean.

    The group norm of DepGraph (Fang et al., CVPR 2023, arXiv 2301.12900) with p = 2 and normalisation by the mean.
    """

    def __call__(
        self, module: nn.Module, dense: nn.Module, target: Pixels, pre: Preprocess, couplings: Couplings
    ) -> dict[str, Tensor]:
        """Scores (C,) of every coupling that can be cut; the images are not looked at."""
        squares = {name: p.detach().double() ** 2 for name, p in _tensors(module).items()}
        scores = {}
        for coupling in couplings:
            parts = [part for part in per_channel(coupling, squares) if part.sum() > 0]
            mean = torch.stack([p / p.mean() for p in parts]).mean(0) if parts else torch.ones(coupling.width)
            scores[coupling.root] = mean.float()
        return scores


class Taylor:
    """How much the answers on unlabelled target images change, to second order, when a channel's gate closes.

    For gates g of ones on the channels, KL(dense || gated) has gradient zero at g = 1 where the network equals the dense
    one, so its first order says nothing. Its second order is the Fisher matrix: with labels y drawn from the network's own
    answer, F_cc = E_x E_y (d log p(y|x) / d g_c)^2, and closing gate c changes KL by F_cc / 2. The gradient of a gate is
    sum(w * dL/dw) over the slices it multiplies (Molchanov et al., CVPR 2019, arXiv 1906.10771, eq. 8, per image). The
    label-free expectation over the network's own answers is ours. Each small batch takes the gradient of
    sum_i sqrt-weighted scores by random signs, whose square has the sum of squares as its mean.
    """

    def __call__(
        self, module: nn.Module, dense: nn.Module, target: Pixels, pre: Preprocess, couplings: Couplings
    ) -> dict[str, Tensor]:
        """Scores (C,) of every coupling that can be cut, from up to 512 target images."""
        chosen = torch.linspace(0, len(target) - 1, min(TAYLOR_IMAGES, len(target))).round().long()
        generator = torch.Generator().manual_seed(0)
        modes = {part: part.training for part in module.modules()}
        module.eval()
        totals = {c.root: torch.zeros(c.width, dtype=torch.float64) for c in couplings}
        names = _tensors(module)
        wanted = [name for name, p in names.items() if p.requires_grad]
        for _, images, _ in plain(target.subset(chosen.tolist()), pre, 8):
            device = next(module.parameters()).device
            log_p = module(images.to(device)).float().log_softmax(1)
            answers = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(device)
            signs = torch.randint(0, 2, (len(images),), generator=generator).to(device) * 2.0 - 1.0
            loss = (signs * log_p.gather(1, answers).squeeze(1)).sum()
            grads = torch.autograd.grad(loss, [names[n] for n in wanted], allow_unused=True)
            products = {
                n: (names[n].detach() * g).double() for n, g in zip(wanted, grads, strict=True) if g is not None
            }
            for coupling in couplings:
                gate = per_channel(_outputs(coupling), products)
                if gate:
                    totals[coupling.root] += torch.stack(gate).sum(0).cpu() ** 2
        for part, mode in modes.items():
            part.training = mode
        return {root: (total / len(chosen) / 2).float() for root, total in totals.items()}


def _outputs(coupling: Coupling) -> Coupling:
    """Only the members through which the channels leave: closing them closes the gate once, not once a reader."""
    readers = tuple(m for m in coupling.members if m.axis == "in")
    if not readers:
        return coupling
    return Coupling(coupling.root, coupling.width, readers)
