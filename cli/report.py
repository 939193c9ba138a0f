"""`edgeprune report`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = ("edgeprune report runs/adapt-resnet50-1 runs/prune-resnet50-1 -o report.html",)


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.report` returned."""
    page.result(facts, console)
