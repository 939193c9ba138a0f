"""`--set name=value`: words -> the typed fields of a dataclass; a wrong name suggests the nearest."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, TypeVar

from edgeprune import catalog
from edgeprune.errors import UsageError, nearest
from edgeprune.options import AdaptOptions, PruneOptions

T = TypeVar("T")

_OTHERS = {
    "objective": "objective.NAME=value sets a knob of --objective",
    "score": "score.NAME=value sets a knob of --score",
}


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
            raise UsageError(
                f"--set {word}: expected name=value; {_listed(kind, what)}; --set help says more"
            )
        if name not in fields:
            hint = f"{nearest(name, fields)}; {_listed(kind, what)}" if fields else "it has none"
            raise UsageError(f"--set {word}: {what} has no knob {name!r}: {hint}")
        found[name] = _convert(word, text, types[name])
    return found


@dataclasses.dataclass(frozen=True)
class Knobs:
    """What `--set help` shows of an objective or a method: what it is, its paper, its knobs with defaults.

    also: what else --set takes beside it, or that it has no knobs.
    """

    name: str
    what: str
    paper: str
    also: str
    knobs: tuple[Mapping[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "knobs": [dict(knob) for knob in self.knobs]}


def of(options: AdaptOptions | PruneOptions) -> Knobs:
    """The knobs of what the options name: an objective for `adapt`, a method for `prune`."""
    if isinstance(options, AdaptOptions):
        name, table, what = options.objective, catalog.OBJECTIVES, "objective"
    else:
        name, table, what = options.method, catalog.METHODS, "method"
    found = catalog.load(table, name, what)
    kind = found.Knobs if isinstance(options, AdaptOptions) else found
    types = typing.get_type_hints(kind)
    means = {k: v for base in reversed(kind.__mro__) for k, v in meanings(base.__doc__ or "").items()}
    rows = [
        {
            "name": f.name,
            "default": _plain(f.default),
            "takes": _takes(types[f.name]),
            "means": means.get(f.name, ""),
        }
        for f in _knobs(kind)
    ]
    entry = catalog.entry(table, name, what)
    also = "" if rows else "it has no knobs of its own"
    if isinstance(options, PruneOptions):
        heard = [said for option, said in _OTHERS.items() if option not in getattr(found(), "ignores", {})]
        also = "; ".join([*filter(None, [also]), *heard])
    return Knobs(name, entry.summary, entry.paper, also, tuple(rows))


def meanings(text: str) -> dict[str, str]:
    """Of paragraphs that say "name: words. other, another: words." the words of each name."""
    found: dict[str, str] = {}
    for words in (" ".join(part.split()) for part in text.split("\n\n")):
        begins = list(re.finditer(r"(?:^|(?<=[.;] ))(\w+(?:, \w+)*): ", words))
        ends = [m.start() for m in begins[1:]] + [len(words)] * bool(begins)
        for m, end in zip(begins, ends, strict=True):
            found |= dict.fromkeys(m.group(1).split(", "), words[m.end() : end].strip().rstrip("."))
    return found


def _takes(kind: Any) -> str:
    """What values a knob of this type takes, in words."""
    if typing.get_origin(kind) in (typing.Union, UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not NoneType)
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(str(c) for c in typing.get_args(kind))
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    return words.get(kind, "not from the command line")


def _plain(value: Any) -> str:
    """A default as it is typed."""
    return str(value).lower() if isinstance(value, bool) else "by itself" if value is None else str(value)


def _knobs(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields that have a default; what has none (images) is given by the tool."""
    return [f for f in dataclasses.fields(kind) if f.init and f.default is not dataclasses.MISSING]


def _listed(kind: type[Any], what: str) -> str:
    """All knobs with their defaults."""
    known = _knobs(kind)
    said = (f"{f.name}={_plain(f.default)}" for f in known)
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
        raise UsageError(f"--set {word}: expected {_takes(kind)}") from None
