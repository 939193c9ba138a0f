"""Results as text: any JSON result as labelled facts and tables, sized to the terminal.

Numbers carry their unit by the name of their key: macs, params, *_bytes, *_ms, accuracy. A result's `next` is
the next command to type; `warnings` were printed on stderr already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeprune.report.numbers import label, text

if TYPE_CHECKING:
    from rich.console import Console

Facts = Mapping[str, Any]
_LAST = ("next", "warnings")


def result(facts: Facts, console: Console) -> None:
    """Print a result of any shape: scalars, groups, tables, the next command."""
    shown = {k: v for k, v in facts.items() if k not in _LAST and v not in (None, "", [], {}, ())}
    pairs({k: v for k, v in shown.items() if not _nested(v)}, console)
    for key, value in shown.items():
        if isinstance(value, Mapping):
            console.print(f"\n[bold]{label(key)}[/bold]")
            pairs(flat(value), console)
        elif _rows(value):
            table(value, console, title=label(key))
    next_command(facts, console)


def pairs(facts: Facts, console: Console) -> None:
    """One fact a line, names in a column."""
    from rich.table import Table

    if not facts:
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in facts.items():
        grid.add_row(label(key), _plain(value, key))
    console.print(grid)


def table(
    rows: Sequence[Facts],
    console: Console,
    *,
    title: str = "",
    columns: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Rows that share keys; numbers to the right. `columns` chooses and orders the keys.

    While the terminal is too narrow, columns go, those named first in `spare` first; --json has them all. What is still
    too wide stands side by side, a fact a line, where that is not too wide itself.
    """
    from rich import box
    from rich.table import Table

    keys = _fitting(
        rows, list(columns) or list(dict.fromkeys(k for row in rows for k in row)), console, spare
    )
    if sum(_width(rows, keys).values()) > console.width >= _turned_width(rows, keys):
        _turned(rows, keys, title, console)
        return
    drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for key in keys:
        right = all(_is_number(row.get(key)) for row in rows)
        drawn.add_column(label(key), justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(_plain(row.get(k), k) for k in keys))
    console.print(drawn)


def _turned(rows: Sequence[Facts], keys: Sequence[str], title: str, console: Console) -> None:
    """A column for each of a few rows that are wider than the terminal."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.title, grid.title_justify = title or None, "left"
    grid.add_column(style="dim", overflow="fold")
    for _ in rows:
        grid.add_column(justify="right", overflow="fold")
    for key in keys:
        grid.add_row(label(key), *(_plain(row.get(key), key) for row in rows))
    console.print(grid)


def _width(rows: Sequence[Facts], keys: Sequence[str]) -> dict[str, int]:
    return {k: max(len(label(k)), *(len(text(row.get(k), k)) for row in rows)) + 3 for k in keys}


def _turned_width(rows: Sequence[Facts], keys: Sequence[str]) -> int:
    each = (max(len(text(row.get(k), k)) for k in keys) + 2 for row in rows)
    return max(len(label(k)) for k in keys) + sum(each)


def _fitting(rows: Sequence[Facts], keys: list[str], console: Console, spare: Sequence[str]) -> list[str]:
    keys = [k for k in keys if any(row.get(k) not in (None, "") for row in rows)]
    width = _width(rows, keys)
    for key in spare:
        if sum(width[k] for k in keys) > console.width and key in keys:
            keys.remove(key)
    return keys


def _is_number(item: Any) -> bool:
    return item is None or (isinstance(item, int | float) and not isinstance(item, bool))


def next_command(facts: Facts, console: Console) -> None:
    """The command that usually comes next, alone on its line so that it can be copied."""
    if command := facts.get("next"):
        console.print("\n[dim]next:[/dim]")
        console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)


def flat(facts: Facts, prefix: str = "") -> dict[str, Any]:
    """Nested facts as one level: {"a": {"b": 1}} -> {"a b": 1}; tables inside are counted."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, Mapping):
            found |= flat(value, name)
        elif _rows(value):
            found[name] = f"{len(value)} entries (--json lists them)"
        elif value not in (None, "", [], ()):
            found[name] = value
    return found


def _plain(item: Any, key: str) -> Any:
    from rich.text import Text

    return Text(text(item, key))  # never markup: a class may be called "[red]"


def _rows(item: Any) -> bool:
    return isinstance(item, list | tuple) and bool(item) and all(isinstance(i, Mapping) for i in item)


def _nested(item: Any) -> bool:
    return isinstance(item, Mapping) or _rows(item)
