"""inspect --sensitivity: one row a coupling and cut, on unlabelled images, and a plot."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeprune import checkpoint
from edgeprune.commands.inspect import inspect
from edgeprune.device_options import InspectOptions
from edgeprune.errors import OutputExists, UsageError
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions

Make = Callable[..., Path]
DIGITS = "edgeprune.digits_net:digits_net"


@pytest.fixture
def options(tmp_path: Path, make_images: Make) -> InspectOptions:
    torch.manual_seed(0)
    network, _ = open_network(DIGITS, ModelOptions(weights="none", classes="2", size=16), ("cat", "dog"))
    with torch.no_grad():  # nothing follows from the first channels of this layer
        for name in ("0.weight", "1.weight", "1.bias"):
            network.module.get_parameter(f"features.2.first.{name}")[:16] = 0
        network.module.get_parameter(f"{network.classifier}.weight").mul_(100)
    checkpoint.write(tmp_path / "model.safetensors", network)
    return InspectOptions(
        file=str(tmp_path / "model.safetensors"),
        sensitivity=True,
        target=make_images(tmp_path / "images", count=4),
        plot=tmp_path / "plot.svg",
    )


def test_silent_channels_cost_nothing(options: InspectOptions) -> None:
    found = inspect(options)
    rows = {(r["layer"], r["kept"]): r for r in found.sensitivity}
    of_it = [r for (layer, _), r in rows.items() if layer == "features.2.first.0"]
    silent = [r for r in of_it if r["width"] - r["kept"] <= 16]
    assert silent
    assert all(abs(r["divergence"]) < 1e-6 for r in silent)
    assert max(r["divergence"] for r in found.sensitivity) > 1e-3
    assert found.to_json()["sensitivity"] == list(found.sensitivity)
    text = (options.plot or Path()).read_text()
    assert text.lstrip().startswith("<?xml")
    assert "features.2.first.0" in text


def test_helpful_errors(options: InspectOptions) -> None:
    assert options.plot is not None
    with pytest.raises(UsageError, match="--target is missing: the unlabelled images"):
        inspect(replace(options, target=None))
    with pytest.raises(UsageError, match=r"--plot plot\.txt: expected a name that ends in \.svg"):
        inspect(replace(options, plot=Path("plot.txt")))
    with pytest.raises(UsageError, match="--score taylor-labels needs labels"):
        inspect(replace(options, score="taylor-labels"))
    options.plot.write_text("mine")
    with pytest.raises(OutputExists, match=r"plot\.svg exists; --force"):
        inspect(options)
    assert options.plot.read_text() == "mine"
