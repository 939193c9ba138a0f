"""`edgeprune prune`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune prune runs/adapt-resnet50-1 --target camera/ --macs 0.4",
    "edgeprune prune runs/adapt-resnet50-1 --target camera/ --latency 0.5x --keep-out 'layer4*'",
    "edgeprune prune runs/adapt-resnet50-1 --target camera/ --latency 2.0ms --table orin.json --params 2M",
    "edgeprune prune model.safetensors --target camera/ --params 1.2M --steps 4 --dry-run",
    "edgeprune prune runs/adapt-resnet50-1 --target camera/ --source lab/ --method admp --channels 0.4",
    "edgeprune prune runs/adapt-resnet50-1 --target camera/ --source lab/ --method tcp --set batches=16 --macs 0.5",
    "edgeprune prune runs/adapt-resnet50-1 --target camera/ --macs 0.3 --then dalr",
)


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.prune` returned."""
    page.result(facts, console)
