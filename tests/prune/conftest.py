import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune.coupling import Coupling, Couplings


def keep_of(coupling: Coupling, share: float, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    grains = coupling.width // coupling.unit // coupling.sections
    picked = torch.randperm(grains, generator=generator)[: max(1, round(grains * share))].tolist()
    if coupling.sections > 1:
        length = coupling.width // coupling.sections
        return tuple(sorted(s * length + i for s in range(coupling.sections) for i in picked))
    return tuple(sorted(i * coupling.unit + j for i in picked for j in range(coupling.unit)))


def _plan_of(couplings: Couplings, share: float = 0.5, seed: int = 0) -> PruningPlan:
    cuts = [Cut(c.root, c.width, keep_of(c, share, seed + n)) for n, c in enumerate(couplings)]
    return PruningPlan(tuple(cuts))


def _silence(module: nn.Module, plan: PruningPlan, couplings: Couplings) -> nn.Module:
    made = copy.deepcopy(module)
    tensors = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    with torch.no_grad():
        for cut in plan.cuts:
            for slot in couplings[cut.root].slots:
                if slot.dim < 0 or slot.name.endswith("running_var"):
                    continue
                alive = {i for k in cut.keep for i in slot.slices[k]}
                gone = sorted({i for s in slot.slices for i in s} - alive)
                tensors[slot.name].index_fill_(slot.dim, torch.tensor(gone, dtype=torch.long), 0)
    return made


def _lively(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
            part.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return module.double().eval()


@pytest.fixture
def plan_of() -> Callable[..., Any]:
    """A random plan that cuts every coupling to about `share` of its grains."""
    return _plan_of


@pytest.fixture
def silence() -> Callable[..., Any]:
    """A dense copy in which all that a plan cuts is zero; exact where every norm is a batch norm."""
    return _silence


@pytest.fixture
def lively() -> Callable[..., Any]:
    """Random batch-norm statistics and gains, in float64, so that no path is silent (in place)."""
    return _lively
