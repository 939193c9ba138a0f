"""`edgeprune bench`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune bench dense.onnx slim.onnx --baseline dense.onnx",
    "edgeprune bench slim.onnx --batch 1,8 --threads 2 -o bench.json",
)


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.bench` returned."""
    page.result(facts, console)
