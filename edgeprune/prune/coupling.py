"""Which channels must go together: facts about a network, frozen, with no tensor inside.

Removing channel i of a coupling removes, in every member, the slices that member lists for i. What cannot be
cut safely is frozen, with the reason in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Member:
    """One tensor that a coupling reaches.

    layer: dotted name of a module (or of a bare parameter). axis: "out" (rows of a weight, entries of a norm
    or a bare parameter) or "in" (columns of a weight). slices: for each of the coupling's C channels the
    indices on that axis that belong to it, so `len(slices) == width`; a flattened 7x7 map has 49 for each. An
    index may be listed for several channels (the head axis of a bias table: for each channel of the head); it
    goes when they all go. The "in" axis of a grouped or depthwise convolution counts its input channels, not
    the columns of its weight. tensor, dim: the parameter that the axis belongs to and which of its dimensions
    it is.
    """

    layer: str
    axis: Literal["out", "in"]
    slices: tuple[tuple[int, ...], ...]
    tensor: str = ""
    dim: int = 0


@dataclass(frozen=True)
class Slot:
    """One axis that surgery shortens, or one integer attribute that is in ratio to an axis.

    name: a dotted parameter or buffer, or "module:attribute" with position for a tuple's entry. dim: the
    axis, -1 for an attribute. size: the axis before any cut. slices: as in Member.
    """

    name: str
    dim: int
    size: int
    slices: tuple[tuple[int, ...], ...]
    position: int | None = None


@dataclass(frozen=True)
class Coupling:
    """Channels 0..width-1 at the output of layer `root`, and everything that goes with them.

    unit: channels go in runs of this length (a whole attention head), aligned to multiples of it.
    sections: the channels are this many equal runs, and every run keeps the same positions (the dimensions of heads,
    what each group of a convolution reads). inner:
    the channels are used inside one block only (no residual stream passes through them). frozen: why the
    coupling must stay whole; None when it can be cut. slots: what surgery changes, biases, running statistics
    and attributes included; members are what scores read.
    """

    root: str
    width: int
    members: tuple[Member, ...]
    unit: int = 1
    sections: int = 1
    inner: bool = True
    frozen: str | None = None
    slots: tuple[Slot, ...] = ()


@dataclass(frozen=True)
class Couplings:
    """All couplings of one network, in the order of execution; roots are distinct."""

    all: tuple[Coupling, ...]

    def __iter__(self) -> Iterator[Coupling]:
        """Only those that can be cut."""
        return (c for c in self.all if c.frozen is None)

    def __getitem__(self, root: str) -> Coupling:
        """The coupling rooted at a layer; KeyError when there is none."""
        for coupling in self.all:
            if coupling.root == root:
                return coupling
        raise KeyError(root)
