"""Where a cut network can be compared with the dense one it came from, channel by channel, with no learned adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgeprune.objectives.imitate import Shared
from edgeprune.prune.coupling import Couplings

MOST = 8  # comparing large maps costs time


def shared_channels(
    dense: nn.Module,
    example: Tensor,
    classifier: str,
    couplings: Couplings,
    kept: Mapping[str, Sequence[int]],
) -> dict[str, Shared]:
    """Layer -> the dense channels that still enter it, for at most MOST layers.

    couplings: of the dense network; kept: root of a coupling that was cut -> its channels that stayed. The classifier
    and, for each residual stream, the last layer that reads it; then layers inside blocks, evenly spread. A layer is
    taken when one coupling alone feeds it, and when the forward of `example` (N, 3, H, W) calls it: attention uses the
    weights of its output projection without calling it.
    """
    called = _called(dense, example)
    read: dict[bool, dict[str, Shared]] = {True: {}, False: {}}
    for coupling in couplings.all:
        for member in reversed(coupling.members):
            layer = dense.get_submodule(member.layer) if member.axis == "in" else None
            width = int(getattr(layer, "in_channels", 0) or getattr(layer, "in_features", 0))
            whole = width and sorted(i for s in member.slices for i in s) == list(range(width))
            if whole and member.layer in called:
                channels = kept.get(coupling.root, range(coupling.width))
                entering = tuple(sorted(i for c in channels for i in member.slices[c]))
                axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1
                read[coupling.inner and member.layer != classifier][member.layer] = Shared(entering, axis)
                break
    streams, inside = list(read[False].items())[-MOST:], list(read[True].items())
    room = min(MOST - len(streams), len(inside))
    return dict(streams + [inside[(2 * i + 1) * len(inside) // (2 * room)] for i in range(room)])


def _called(module: nn.Module, example: Tensor) -> set[str]:
    """The layers that a forward calls."""
    found: set[str] = set()
    hooks = [
        part.register_forward_pre_hook(lambda _, __, name=name: found.add(name))
        for name, part in module.named_modules()
    ]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found
