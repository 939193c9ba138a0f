"""Fixtures that several rooms need: small networks and small folders of images."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # jobs in a shell's background ignore it, and tests send it


@pytest.fixture
def make_images() -> Callable[..., Path]:
    """Write `count` noise images of 12x12 pixels into each class folder of `root`, and return it."""

    def make(
        root: Path, labels: tuple[str, ...] = ("cat", "dog"), count: int = 6, ending: str = "png"
    ) -> Path:
        random = np.random.default_rng(len(labels) + count)
        for number, label in enumerate(labels):
            folder = root / label
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = random.integers(0, 128, (12, 12, 3)) + 127 * (np.arange(3) == number % 3)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.{ending}")
        return root

    return make


@pytest.fixture(autouse=True)
def _denormal_numbers() -> Iterator[None]:
    """A command that runs here takes denormal numbers for 0 from then on; hypothesis draws them."""
    if "torch" in sys.modules:  # a fixture of the module may have run one
        sys.modules["torch"].set_flush_denormal(False)
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
