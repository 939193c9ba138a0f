"""Where a cut network can be compared with the dense one it came from, channel by channel, with nothing to learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from edgeprune.prune.coupling import Couplings

MOST = 8  # comparing large maps costs time


def shared_channels(
    dense: nn.Module,
    classifier: str,
    couplings: Couplings,
    kept: Mapping[str, Sequence[int]],
) -> dict[str, list[int]]:
    """Layer -> the dense channels that still enter it, increasing, for at most MOST layers.

    couplings: of the dense network; kept: root of a coupling that was cut -> its channels that stayed. The classifier
    and, for each residual stream, the last layer that reads it; then layers inside blocks, evenly spread. A layer is
    taken when one coupling alone feeds it.
    """
    read: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}
    for coupling in couplings.all:
        for member in reversed(coupling.members):
            layer = dense.get_submodule(member.layer) if member.axis == "in" else None
            width = int(getattr(layer, "in_channels", 0) or getattr(layer, "in_features", 0))
            if width and sorted(i for s in member.slices for i in s) == list(range(width)):
                channels = kept.get(coupling.root, range(coupling.width))
                entering = sorted(i for c in channels for i in member.slices[c])
                read[coupling.inner and member.layer != classifier][member.layer] = entering
                break
    streams, inside = list(read[False].items())[-MOST:], list(read[True].items())
    room = min(MOST - len(streams), len(inside))
    return dict(streams + [inside[(2 * i + 1) * len(inside) // (2 * room)] for i in range(room)])
