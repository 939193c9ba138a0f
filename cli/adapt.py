"""`edgeprune adapt`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune adapt timm:resnet50 --target camera/ --source lab/",
    "edgeprune adapt torchvision:resnet18 --weights r18.pth --target images.zip --objective shot -o runs/a",
)


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.adapt` returned."""
    page.result(facts, console)
