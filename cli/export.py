"""`edgeprune export`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune export runs/prune-resnet50-1 --to onnx",
    "edgeprune export runs/prune-resnet50-1 --precision int8 --to tensorrt-rtx --compute-capability 8.6,8.9",
    "edgeprune export model.onnx --to tensorrt",
    "edgeprune export runs/prune-resnet50-1 --images camera/ --batch 1:8:32 -o out/",
)

SPARE = ("precision", "cosine", "ties", "bytes", "images")
"""Columns of the table of files that a narrow terminal can do without; --json has them."""


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.export` returned."""
    shown = dict(_shown(facts))
    rows = shown.pop("files", ()) if not facts.get("plan") else ()
    page.result({**shown, "next": None}, console)
    if rows:
        page.table(rows, console, title="Files", spare=SPARE)
    page.next_command(shown, console)


def _shown(facts: page.Facts) -> page.Facts:
    """Without what is said twice: the row of a lone file, the parity of the last of several, counts of a plan."""
    shown = dict(facts)
    rows = facts.get("files") or ()
    if len(rows) > 1:
        for key in ("file", "bytes", "parity", "precision"):
            shown.pop(key, None)
    else:
        shown.pop("files", None)
    if facts.get("plan"):
        shown = dict(facts["plan"])
    return shown
