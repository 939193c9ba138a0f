"""Where the integers of a forward come from: an attribute of a module, a shape, or a literal.

A cut network runs only when every integer that its forward writes down follows. So attributes are handed to
the forward as integers that remember their origin, and so are shapes; arithmetic with one origin keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from edgeprune.prune.labels import Ids


@dataclass(frozen=True)
class Attribute:
    """An integer attribute: dotted module name, attribute, and the position when it is a tuple or list."""

    module: str
    name: str
    position: int | None = None
    value: int = field(default=0, compare=False)


@dataclass(frozen=True, eq=False)
class Extent:
    """The size of a tracked axis."""

    labels: Ids


Origin = Attribute | Extent


class Known(int):
    """An int that remembers where it comes from; `base` is the origin's own value (this one is in ratio to
    it).
    """

    origins: tuple[Origin, ...]
    base: int

    def __new__(cls, value: int, origins: tuple[Origin, ...], base: int | None = None) -> Known:
        """`value` read from `origins`."""
        made = super().__new__(cls, value)
        made.origins = origins
        made.base = value if base is None else base
        return made

    def _derived(self, value: Any, other: Any) -> Any:
        if value is NotImplemented or type(value) is not int:
            return value
        if isinstance(other, Known):
            return Known(value, self.origins + other.origins)
        return Known(value, self.origins, self.base)

    def __mul__(self, other: Any) -> Any:
        return self._derived(int.__mul__(self, other), other)

    def __rmul__(self, other: Any) -> Any:
        return self._derived(int.__rmul__(self, other), other)

    def __floordiv__(self, other: Any) -> Any:
        return self._derived(int.__floordiv__(self, other), other)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._derived(int.__rfloordiv__(self, other), other)

    def __add__(self, other: Any) -> Any:
        return self._derived(int.__add__(self, other), other)

    def __radd__(self, other: Any) -> Any:
        return self._derived(int.__radd__(self, other), other)

    def __sub__(self, other: Any) -> Any:
        return self._derived(int.__sub__(self, other), other)

    def __rsub__(self, other: Any) -> Any:
        return self._derived(int.__rsub__(self, other), other)

    def __deepcopy__(self, memo: Any) -> Known:
        return self

    def __reduce__(self) -> Any:
        return (int, (int(self),))


def remember(module: nn.Module) -> None:
    """Replace every integer attribute by one that knows its place; layers of torch.nn keep theirs (in place)."""
    for name, part in module.named_modules():
        if type(part).__module__.startswith("torch.nn."):
            continue
        for key, value in list(vars(part).items()):
            if key.startswith("_") or key == "training":
                continue
            known = _known(value, Attribute(name, key))
            if known is not value:
                vars(part)[key] = known


def _known(value: Any, at: Attribute) -> Any:
    if type(value) is int:
        return Known(value, (Attribute(at.module, at.name, None, value),))
    if type(value) in (tuple, list) and value and all(type(v) is int for v in value):
        return type(value)(Known(v, (Attribute(at.module, at.name, n, v),)) for n, v in enumerate(value))
    return value


def integers(value: Any) -> Iterator[int]:
    """Every integer inside nested arguments, slices too."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, slice):
        for end in (value.start, value.stop, value.step):
            yield from integers(end)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from integers(item)
