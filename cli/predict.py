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
    """Print what `edgeprune.commands.predict` returned: the answers, or where the CSV file is."""
    answers, skipped = facts.get("predictions", ()), facts.get("skipped", ())
    if facts.get("csv"):
        page.pairs({"csv": facts["csv"], "answers": len(answers)}, console)
    else:
        page.table(answers, console)
    for name in skipped:
        console.print(f"skipped, cannot be read: {name}", style="yellow", markup=False, highlight=False)
