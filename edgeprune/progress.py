"""One progress bar with an ETA, on stderr; where stderr is no terminal, a line every half minute, and one for each
thing that is done.

    with bar("adapt", total=300) as tick:
        tick(1, loss=0.3)
    with doing("cut 1 of 6"):
        ...  # no steps to count

Bars may nest: an inner one is another line of the same display.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
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
from rich.table import Column

EVERY = 30.0  # seconds between two lines of a log
WIDE = 110  # columns of a terminal that leave room for a long bar


class Tick(Protocol):
    """Say that `steps` more are done; the keywords are shown beside the bar, numbers in four digits."""

    def __call__(self, steps: int = 1, **shown: float | str) -> None: ...  # noqa: D102


_active: list[Progress] = []


@contextmanager
def bar(name: str, total: int | None, *, done: int = 0, console: Console | None = None) -> Iterator[Tick]:
    """Show `name` as a bar over `total` steps (None: not known), of which `done` were done before (a resumed run)."""
    console = console or Console(file=sys.stderr)
    if not console.is_terminal:
        yield _written(console, name, total, done)
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


@contextmanager
def doing(name: str, *, console: Console | None = None) -> Iterator[None]:
    """Show that `name` is being done, which has no steps to count: a log has the line at once."""
    console = console or Console(file=sys.stderr)
    if not console.is_terminal:
        _print(console, name)
        yield
        return
    with bar(name, None, console=console):
        yield


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _display(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30 if console.width >= WIDE else 10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}", table_column=Column(no_wrap=False)),  # wraps: nothing is cut off
        console=console,
    )


@contextmanager
def _line(display: Progress, name: str, total: int | None, done: int) -> Iterator[Tick]:
    task = display.add_task(name, total=total, completed=done, shown="")

    words = ""

    def tick(steps: int = 1, **shown: float | str) -> None:
        nonlocal words
        words = _words(shown) or words
        display.update(task, advance=steps, shown=words)

    try:
        yield tick
    finally:
        display.stop_task(task)


def _written(console: Console, name: str, total: int | None, done: int) -> Tick:
    """A tick for a log: a line now and then, so that a long run is seen to go on."""
    last = time.monotonic()

    def tick(steps: int = 1, **shown: float | str) -> None:
        nonlocal last, done
        done += steps
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            _print(console, f"{name} {done}/{total or '?'}  {_words(shown)}".rstrip())

    return tick


def _words(shown: Mapping[str, float | str]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
