"""How to train: the settings, which parameters learn, and how fast at each step. No loop, no data, no file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from edgeprune.errors import UsageError
from edgeprune.model import Network
from edgeprune.waist import Needs, Objective, Step

NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


Optimizer = Literal["adamw", "sgd"]
Decay = Literal["cosine", "inverse"]


@dataclass(frozen=True)
class Settings:
    """How to train.

    steps: optimiser steps. batch: images of each domain in a step. lr: peak learning rate; warmup: share of the steps
    it takes to reach it; decay: how it falls then. head_lr: factor for the classifier. optimizer: AdamW, or SGD with
    Nesterov momentum 0.9. accumulate: batches whose mean gradient makes a step; losses that couple a batch's images
    see one batch at a time. ema: decay of the average of weights that is kept, 0 for none. validations: how often the
    label-free validators look after the start; 0: at the end alone, and not at all if the last weights stay. flip,
    crop: see edgeprune.data.batches.Batches; crop None is (0.7, 1), and (1, 1) for images up to 64 pixels, which lose
    too much: their aspect alone varies.
    select: the validator that chooses the checkpoint, see edgeprune.select. precision: as lightning-fabric calls it.
    compile: torch.compile the network while it trains.
    """

    steps: int
    batch: int = 32
    lr: float = 5e-4
    weight_decay: float = 5e-4
    warmup: float = 0.05
    head_lr: float = 1.0
    ema: float = 0.0
    validations: int = 6
    save_every: int = 50
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"
    flip: bool = True
    crop: tuple[float, float] | None = None
    optimizer: Optimizer = "adamw"
    decay: Decay = "cosine"
    accumulate: int = 1
    select: str = "information"
    compile: bool = False


@contextmanager
def learning(network: Network, needs: Needs, *, taught: bool = False) -> Iterator[None]:
    """Inside the block only the network's parameters that the objective lets learn ask for gradients.

    taught: labelled source images take part. UsageError when none would.
    """
    asked = {name: p.requires_grad for name, p in network.module.named_parameters()}
    head = _ids(network.module.get_submodule(network.classifier).parameters())
    norms = _ids(p for m in network.module.modules() if isinstance(m, NORMS) for p in m.parameters())
    for p in network.module.parameters():
        fixed = (needs.freeze_classifier and not taught and id(p) in head) or (
            needs.norms_only and id(p) not in norms
        )
        p.requires_grad_(p.requires_grad and not fixed)
    try:
        if needs.train and needs.norms_only and not any(p.requires_grad for p in network.module.parameters()):
            raise UsageError(
                f"{network.spec} has no normalisation layer that can learn, and the objective trains no other: "
                "take another --objective"
            )
        yield
    finally:
        for name, p in network.module.named_parameters():
            p.requires_grad_(asked[name])
            p.grad = None


def optimizer(network: Network, objective: Objective, settings: Settings) -> torch.optim.Optimizer:
    """An optimiser of what asks for gradients: body, classifier and the objective's own, each with its lr `factor`."""
    head = _ids(network.module.get_submodule(network.classifier).parameters())
    live = [p for p in network.module.parameters() if p.requires_grad]
    body, tail = [p for p in live if id(p) not in head], [p for p in live if id(p) in head]
    named = [(body, 1.0), (tail, settings.head_lr), (list(objective.parameters()), objective.needs.own_rate)]
    groups: list[dict[str, Any]] = [{"params": p, "lr": settings.lr, "factor": f} for p, f in named if p]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def set_rates(optimizer: torch.optim.Optimizer, settings: Settings, step: Step) -> None:
    """Give each group of parameters its learning rate for this step."""
    rate = settings.lr * step.rate(settings.warmup, settings.decay)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


@torch.no_grad()
def averaged(
    kept: dict[str, Tensor], now: Mapping[str, Tensor], decay: float, step: int
) -> dict[str, Tensor]:
    """The running average `kept` of all weights, in place, after step `step`; a copy of `now` when there is none yet.

    The decay is (1 + step) / (10 + step) until it reaches `decay`, so that early weights are soon forgotten. Counters
    are the last ones.
    """
    decay = min(decay, (1 + step) / (10 + step))
    if not kept:
        return {key: value.clone() for key, value in now.items()}
    for key, value in now.items():
        if value.is_floating_point():
            kept[key].lerp_(value, 1 - decay)
        else:
            kept[key].copy_(value)
    return kept


def _ids(parameters: Iterable[nn.Parameter]) -> set[int]:
    return {id(p) for p in parameters}
