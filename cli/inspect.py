"""`edgeprune inspect`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune inspect runs/prune-resnet50-1",
    "edgeprune inspect slim.onnx --json",
)


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.inspect` returned."""
    page.result(facts, console)
