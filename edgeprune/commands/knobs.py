"""`--set name=value`: words -> the typed fields of a dataclass; a wrong name suggests the nearest."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, TypeVar

from edgeprune.errors import UsageError, nearest

T = TypeVar("T")


def parse(kind: type[T], words: Sequence[str], what: str) -> dict[str, Any]:
    """The fields of dataclass `kind` that "name=value" words set, converted to each field's type.

    UsageError says which name is unknown (and the nearest), or which value is not of the field's type.
    """
    fields = {f.name: f for f in _knobs(kind)}
    types = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"--set {word}: expected name=value; {_listed(kind, what)}")
        if name not in fields:
            hint = f"{nearest(name, fields)}; {_listed(kind, what)}" if fields else "it has none"
            raise UsageError(f"--set {word}: {what} has no knob {name!r}: {hint}")
        found[name] = _convert(word, text, types[name])
    return found


def _knobs(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields that have a default; what has none (images) is given by the tool."""
    return [f for f in dataclasses.fields(kind) if f.init and f.default is not dataclasses.MISSING]


def _listed(kind: type[Any], what: str) -> str:
    """All knobs with their defaults."""
    known = _knobs(kind)
    said = (f"{f.name}={str(f.default).lower() if isinstance(f.default, bool) else f.default}" for f in known)
    return f"{what} has {', '.join(said)}" if known else f"{what} has no knobs"


def _convert(word: str, text: str, kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, UnionType):  # a knob that may stay open
        kind = next(k for k in typing.get_args(kind) if k is not NoneType)
    if kind is bool:
        lowered = text.lower()
        if lowered in ("true", "yes", "1"):
            return True
        if lowered in ("false", "no", "0"):
            return False
        raise UsageError(f"--set {word}: expected true or false")
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise UsageError(f"--set {word}: {nearest(text, [str(c) for c in choices])}")
        return text
    if kind not in (int, float, str):
        raise UsageError(f"--set {word}: this knob cannot be set from the command line")
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"--set {word}: expected a value of type {kind.__name__}") from None
