"""What Torch-Pruning would cut, by its own defaults, as a plan that `edgeprune prune --plan` applies."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from edgeprune.model import Network
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import graph, macs

TRIES = 12


def choose(network: Network, kept: float, able: Callable[[str], bool] = lambda name: True) -> PruningPlan:
    """The largest network within the share `kept` of the MACs: group magnitude, one ratio for all layers.

    able: which convolutions and linear layers, by name, Torch-Pruning may begin a group at; the classifier never is.
    """
    whole = macs.measure(network.module, network.example())[0]
    found = graph.find(network.module, network.example())
    low, high, best = 0.0, 0.9, None
    for _ in range(TRIES):
        ratio = (low + high) / 2
        module = copy.deepcopy(network.module)
        gone = _cut(module, network, ratio, able)
        share = macs.measure(module, network.example())[0] / whole
        if share <= kept:
            best, high = (gone, share), ratio
        else:
            low = ratio
    assert best is not None, "no ratio below 0.9 is enough"
    cuts = []
    for coupling in found.all:
        own = next((m for m in coupling.members if m.layer == coupling.root and m.axis == "out"), None)
        lost = best[0].get(coupling.root, set())
        if own is not None and lost:
            keep = tuple(c for c in range(coupling.width) if not lost.issuperset(own.slices[c]))
            cuts.append(Cut(coupling.root, coupling.width, keep))
    return PruningPlan(tuple(cuts), why={"by": "torch-pruning, group magnitude", "macs": best[1]})


def _cut(module: Any, network: Network, ratio: float, able: Callable[[str], bool]) -> dict[str, set[int]]:
    """Cut `module` in place; layer -> the outputs that it lost."""
    import torch
    import torch_pruning

    names = {part: name for name, part in module.named_modules()}
    layers = [part for part in names if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear))]
    pruner = torch_pruning.pruner.BasePruner(
        module,
        network.example(1),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=[p for p in layers if names[p] == network.classifier or not able(names[p])],
    )
    found: dict[str, set[int]] = defaultdict(set)
    for group in pruner.step(interactive=True):
        for dep, index in group:
            if pruner.DG.is_out_channel_pruning_fn(dep.handler) and dep.target.module in names:
                found[names[dep.target.module]].update(index)
        group.prune()
    return dict(found)
