"""Small jobs: a network whose useless channels are known, and a small digits network with images for the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune import checkpoint
from edgeprune.data.pixels import Pixels
from edgeprune.images import Preprocess
from edgeprune.methods.job import Job
from edgeprune.model import Network
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions, PruneOptions
from edgeprune.prune.budget import Budget

DIGITS = "edgeprune.digits_net:digits_net"
USELESS = {"first": (0, 2, 3, 5, 6, 9, 10, 11, 13, 15), "second": (1, 4, 7, 8, 12, 14)}


class Planted(nn.Module):
    """A residual stream and two inner layers of 16 channels; USELESS ones are read with weight 0 or never fire."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.first_out = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.second, self.second_out = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            for name, dead in USELESS.items():
                made, read = self.get_submodule(name), self.get_submodule(f"{name}_out")
                assert isinstance(made, nn.Conv2d)
                assert isinstance(read, nn.Conv2d)
                assert made.bias is not None
                made.bias.fill_(0.5)
                made.bias[list(dead[1::2])] = -100
                read.weight[:, list(dead[::2])] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.first_out(self.first(x).relu())
        x = x + self.second_out(self.second(x).relu())
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def pixels(count: int, shift: int, labels: int | None) -> Pixels:
    generator = torch.Generator().manual_seed(count + shift)
    images = torch.randint(0, 200, (count, 8, 8, 3), generator=generator, dtype=torch.uint8) + shift
    classes = None if labels is None else torch.arange(count) % labels
    return Pixels(images, classes, [str(i) for i in range(count)])


@pytest.fixture
def planted() -> Callable[..., Job]:
    """A job that asks for half of the inner channels of `Planted`, as many as are useless, and no training."""

    def make(**options: Any) -> Job:
        pre = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)
        network = Network(Planted().eval(), "planted", pre, tuple("abcd"), "head")
        words = {"recover": 0.0, "multiple": 1, "floor": 0.0, "batch": 16, "channels": "0.5", **options}
        how = Budget.parse(macs=None, params=None, channels=words["channels"])
        images = (pixels(48, 40, None), pixels(40, 0, 4))
        return Job.of(network, images, how, PruneOptions(**words), None)

    return make


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the digits network with two classes, for 16 x 16 images."""
    file = tmp_path_factory.mktemp("dense") / "model.safetensors"
    torch.manual_seed(0)
    words = ModelOptions(weights="none", classes="2", size=16)
    checkpoint.write(file, open_network(DIGITS, words, ("cat", "dog"))[0])
    return file


@pytest.fixture
def options(two_classes: Path, tmp_path: Path, make_images: Callable[..., Path]) -> PruneOptions:
    """Prune it to half of its MACs in three cuts, with labelled source images and a few steps after each."""
    return PruneOptions(
        model=str(two_classes),
        target=make_images(tmp_path / "target", count=4),
        source=make_images(tmp_path / "source", count=5),
        macs="0.5",
        iterations=3,
        schedule="linear",
        recover=6.0,
        between=1.0,
        batch=4,
        output=tmp_path / "slim",
        device="cpu",
    )
