"""`edgeprune predict`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune predict slim.onnx --images camera/",
    "edgeprune predict slim.onnx --images camera/ --top 3 --csv answers.csv",
)


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.predict` returned."""
    page.result(facts, console)
