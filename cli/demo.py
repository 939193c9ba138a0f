"""`edgeprune demo`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune demo",
    "edgeprune demo --macs 0.25 -o runs/digits",
)


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.demo` returned: the one table, then where the page is."""
    page.table(facts.get("table", ()), console, spare=("params", "bytes"))
    page.result({key: item for key, item in facts.items() if key != "table"}, console)
