"""Every objective pulls two shifted domains together by itself: no batch statistics help, and source alone does not."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune import inference, train
from edgeprune.data.pixels import Pixels
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.objectives.auto import Auto
from edgeprune.objectives.bnm import BNM
from edgeprune.objectives.cdan import CDAN
from edgeprune.objectives.dan import DAN
from edgeprune.objectives.dann import DANN
from edgeprune.objectives.fixmatch import FixMatch
from edgeprune.objectives.jan import JAN
from edgeprune.objectives.mcc import MCC
from edgeprune.objectives.nrc import NRC
from edgeprune.objectives.shot import SHOT
from edgeprune.objectives.source import Source
from edgeprune.objectives.swmmd import SWMMD
from edgeprune.objectives.tent import Tent
from edgeprune.train import Settings
from edgeprune.waist import Batch, Objective, Step, Task

TASK = Task(16, 3)


class Tiny(nn.Module):
    """Normalises image by image, so statistics of the target reach nothing."""

    def __init__(self) -> None:
        super().__init__()
        one = [nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU()]
        self.body = nn.Sequential(*one, nn.Conv2d(16, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.body(x).mean((2, 3))))


def network() -> Network:
    torch.manual_seed(0)
    return Network(Tiny().eval(), "x", Preprocess((8, 8), (0.5,) * 3, (0.25,) * 3), ("0", "1", "2"), "head")


def images(shifted: bool, labelled: bool) -> Pixels:
    """Three classes told by stripes, faint to strong: across, down and none; the target is flat and reddish."""
    random = np.random.default_rng(7 + shifted)
    labels = random.permutation(np.arange(96) % 3)
    rows = random.normal(120, 25, (96, 8, 8, 3))
    contrast = random.uniform(15, 75, (96, 1, 1, 1))
    rows[labels == 0, ::2] += contrast[labels == 0]
    rows[labels == 1, :, ::2] += contrast[labels == 1]
    if shifted:
        rows = 0.75 * rows + np.array([35, 0, 10])
    data = torch.from_numpy(rows.clip(0, 255).astype(np.uint8))
    return Pixels(data, torch.from_numpy(labels) if labelled else None, [str(i) for i in range(96)])


def settings(steps: int, lr: float) -> Settings:
    return Settings(steps, batch=16, lr=lr, device="cpu", flip=False, crop=(1.0, 1.0), validations=1)


@functools.cache
def cloud() -> dict[str, Tensor]:
    net = network()
    train.fit(net, Source(TASK), images(True, False), images(False, True), settings(60, 1e-2))
    return dict(net.module.state_dict())


def accuracy_after(kind: type[Objective], steps: int, lr: float) -> float:
    net, objective = network(), kind(TASK)
    net.module.load_state_dict(cloud())
    objective.needs = replace(objective.needs, last=True)
    source = images(False, True) if kind.needs.source or kind.needs.welcome_source else None
    train.fit(net, objective, images(True, False), source, settings(steps, lr))
    return inference.evaluate(net, images(True, True))


def test_source_alone_leaves_the_domains_apart() -> None:
    assert accuracy_after(Source, 80, 3e-3) < 0.86


@pytest.mark.parametrize("kind", [MCC, CDAN, DANN, DAN, JAN, BNM, SWMMD, SHOT, NRC])
def test_domains_come_together(kind: type[Objective]) -> None:
    steps = 80 if kind in (CDAN, DANN) else 40  # a discriminator has to learn first; source alone has as many
    assert accuracy_after(kind, steps, 3e-3) > 0.9


def test_strong_views_bring_them_together_too() -> None:
    assert accuracy_after(Auto, 80, 1e-2) > 0.9


def points(shift: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes (200, 2), left and right with a gap between them, and their labels (200,)."""
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(200) % 2
    found = torch.randn(200, 2, generator=generator) * 0.5
    found[:, 0] += 2.0 * (2 * labels - 1) + shift
    return found, labels


@pytest.mark.parametrize(
    ("kind", "least", "most"), [(Source, 0.0, 0.93), (Tent, 0.99, 1.0), (FixMatch, 0.99, 1.0)]
)
def test_the_boundary_moves_into_the_gap_of_the_target(kind: type[Any], least: float, most: float) -> None:
    torch.manual_seed(0)
    net, (source, labels), (target, hidden) = nn.Linear(2, 2), points(0.0, 0), points(1.5, 1)
    objective = kind(Task(2, 2))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for i in range(-100, 200):  # the first hundred steps see the source alone
        strong = target + 0.7 * torch.randn(target.shape)
        views = {"weak": (target, net(target)), "strong": (strong, net(strong))}
        ours = Batch(source, net(source), labels, torch.arange(200))
        theirs = Batch(target, net(target), None, torch.arange(200), views)
        loss = (
            sum(objective.terms(ours, theirs, Step(i, 200)).values())
            if i >= 0
            else F.cross_entropy(net(source), labels)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if i == -1:
            assert (net(target).argmax(1) == hidden).double().mean() < 0.93
    assert least <= (net(target).argmax(1) == hidden).double().mean() <= most
