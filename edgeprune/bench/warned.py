"""The warnings of a table's rows, each sentence once, with the rows that it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST = 3  # rows that are named in one line; more are counted


def titles(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells each row from the others: its artefact, and what of batch and threads was swept."""
    swept = [key for key in ("batch", "threads") if len({row["config"].get(key) for row in rows}) > 1]
    names = short([str(row["model"]["name"]) for row in rows])
    return [
        ", ".join([name, *(f"{key} {row['config'].get(key)}" for key in swept)])
        for name, row in zip(names, rows, strict=True)
    ]


def short(names: Sequence[str]) -> list[str]:
    """Names without their folder, where that does not make two of them one."""
    ends = [name.rpartition("/")[2] for name in names]
    return ends if len(set(ends)) == len(set(names)) else list(names)


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a sentence, in the order of the rows; a sentence that all rows share names none of them."""
    about: dict[str, list[str]] = {}
    for title, row in zip(titles(rows), rows, strict=True):
        for said in row.get("warnings") or ():
            about.setdefault(str(said), []).append(title)
    found = []
    for said, whose in about.items():
        if len(whose) == len(rows):
            found.append(said)
        elif len(whose) > MOST:
            found.append(f"{len(whose)} of {len(rows)} rows ({whose[0]}; {whose[1]}; ...): {said}")
        else:
            found.append(f"{'; '.join(whose)}: {said}")
    return found
