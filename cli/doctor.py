"""`edgeprune doctor`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune doctor",
    "edgeprune doctor --clear-cache",
)


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.doctor` returned."""
    page.result(facts, console)
