"""Which ranks save what a budget asks for, for the least output energy lost: DALR's allocation over layers, ours.

A ladder is a layer's ranks, the largest first, each with what it saves and loses. What it must satisfy: the ranks save
what is needed, and no single one of them could be higher, or its layer whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from edgeprune.errors import BudgetNotMet
from edgeprune.prune import lowrank
from edgeprune.prune.pair_times import PairTime
from edgeprune.prune.search import LATENCY


@dataclass(frozen=True)
class Choice:
    """A layer at one rank: what it saves (MACs, parameters or ms) and the share of output energy that it loses."""

    layer: str
    rank: int
    saved: float
    lost: float


Ladders = list[list[Choice]]  # of each layer its ranks, the largest first


@dataclass(frozen=True)
class Look:
    """What target images say of a layer: share of output energy lost at each rank (m + 1,), products an image."""

    lost: Tensor
    positions: float


def ladders(
    module: nn.Module,
    looks: Mapping[str, Look],
    kind: str,
    multiple: int,
    times: Mapping[str, PairTime],
    *,
    biased: bool,
) -> Ladders:
    """For each layer that ran, its ranks that save something of `kind`, in multiples, the largest first.

    times: of the layers that were timed; where there are any, only ranks faster than the layer, and no other layer.
    biased: a pair has a bias, whether its layer has one or not.
    """
    found = []
    for name, seen in looks.items():
        layer = module.get_submodule(name)
        m, n = lowrank.matrix(layer).shape
        added = m if biased and layer.bias is None else 0
        steps = []
        for k in reversed(range(multiple, min(m, n) + 1, multiple)):
            faster = times[name].whole - float(times[name].pair(k)) if name in times else 0.0
            count = m * n - k * (m + n)
            saved = {"macs": seen.positions * count, "params": float(count - added), LATENCY: faster}[kind]
            if count > 0 and saved > 0 and (faster > 0 or not times):
                steps.append(Choice(name, k, saved, float(seen.lost[k])))
        found.append(steps)
    return [steps for steps in found if steps]


def allocate(ladders: Ladders, needed: float, kind: str = "", ceiling: float = 0.0) -> dict[str, Choice]:
    """Ranks that save `needed`, each step the one that loses least output energy for what it saves; BudgetNotMet, which
    says what can be met if `ceiling`, what may be left, is known.

    What the last step saves too much is given back: no single rank could be higher.
    """
    chosen: dict[str, Choice] = {}
    while (short := needed - sum(one.saved for one in chosen.values())) > 0:
        best: tuple[float, Choice] | None = None
        for steps in ladders:
            now = chosen.get(steps[0].layer, Choice(steps[0].layer, 0, 0, 0.0))
            for one in (s for s in steps if s.saved > now.saved):
                price = max(one.lost - now.lost, 0.0) / min(one.saved - now.saved, short)
                if best is None or price < best[0]:
                    best = price, one
        if best is None:
            what = {LATENCY: " ms", "macs": " MACs", "params": " parameters"}.get(kind, "")
            larger = (
                f"give --{kind} {math.ceil(ceiling + short)} or more" if ceiling else "give a larger budget"
            )
            slower = ", or count pairs that are slower here, too (the knob measured=false)" * (kind == "macs")
            raise BudgetNotMet(
                f"low rank saves {_said(needed - short)} of the {_said(needed)}{what} that the budget asks for: "
                f"{larger}, or cut channels, with --then dalr more of the way (a larger --then-share){slower}"
            )
        chosen[best[1].layer] = best[1]
    return _filled(chosen, ladders, -short)


def _filled(chosen: dict[str, Choice], ladders: Ladders, spare: float) -> dict[str, Choice]:
    """Ranks raised, or layers left whole, within what is to spare: what regains most output energy for it first."""
    while True:
        best: tuple[float, Choice] | None = None
        for steps in (s for s in ladders if s[0].layer in chosen):
            now = chosen[steps[0].layer]
            for one in (*steps, Choice(now.layer, 0, 0.0, 0.0)):
                given, regained = now.saved - one.saved, now.lost - one.lost
                if 0 < given <= spare and regained >= 0 and (best is None or regained / given > best[0]):
                    best = regained / given, one
        if best is None:
            return {name: one for name, one in chosen.items() if one.rank}
        spare -= chosen[best[1].layer].saved - best[1].saved
        chosen[best[1].layer] = best[1]


def _said(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.3g}"
