"""One progress bar with an ETA, on stderr; nothing at all when stderr is not a terminal.

    with bar("adapt", total=300) as tick:
        tick(1, loss=0.3)

Bars may nest: an inner one is another line of the same display.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Tick(Protocol):
    """Say that `steps` more are done; the keywords are shown beside the bar, numbers in four digits."""

    def __call__(self, steps: int = 1, **shown: float | str) -> None: ...  # noqa: D102


_active: list[Progress] = []


@contextmanager
def bar(name: str, total: int, *, done: int = 0, console: Console | None = None) -> Iterator[Tick]:
    """Show `name` as a bar over `total` steps, of which `done` were done before (a resumed run)."""
    console = console or Console(file=sys.stderr)
    if not console.is_terminal:
        yield _nothing
        return
    if _active:
        with _line(_active[-1], name, total, done) as tick:
            yield tick
        return
    with _display(console) as display:
        _active.append(display)
        try:
            with _line(display, name, total, done) as tick:
                yield tick
        finally:
            _active.remove(display)


def _display(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
        console=console,
    )


@contextmanager
def _line(display: Progress, name: str, total: int, done: int) -> Iterator[Tick]:
    task = display.add_task(name, total=total, completed=done, shown="")

    words = ""

    def tick(steps: int = 1, **shown: float | str) -> None:
        nonlocal words
        if shown:
            words = "  ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
            )
        display.update(task, advance=steps, shown=words)

    try:
        yield tick
    finally:
        display.stop_task(task)


def _nothing(steps: int = 1, **shown: float | str) -> None:
    """Tick where nobody watches."""
