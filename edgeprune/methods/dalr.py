"""Domain-adaptive low rank: layers become pairs in closed form from target activations, without labels or training.

The paper's (Masana et al., ICCV 2017): the closed form of fully connected layers. Ours: convolutions, and ranks by
the share of output energy that is lost for each MAC or parameter saved, instead of labelled validation accuracy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgeprune import inference
from edgeprune.errors import BudgetNotMet, UsageError, nearest
from edgeprune.methods import job as parts
from edgeprune.methods import work
from edgeprune.methods.job import Job
from edgeprune.plan import LowRank, PruningPlan
from edgeprune.prune import lowrank, macs, surgery


@dataclass(frozen=True)
class Choice:
    """A layer at one rank: what it saves (MACs or parameters) and the share of output energy that it loses."""

    layer: str
    rank: int
    saved: int
    lost: float


@dataclass(frozen=True)
class DALR:
    """form: svd, svd-bias, dalr or centred. ridge: times the mean energy of an input. positions: patches an image."""

    form: str = "centred"
    ridge: float = 1e-3
    positions: int = 16

    def __post_init__(self) -> None:
        if self.form not in lowrank.FORMS:
            raise UsageError(f"form={self.form}: no such closed form; {nearest(self.form, lowrank.FORMS)}")

    def __call__(self, job: Job) -> None:
        """Replace layers of `job.network` by pairs until the budget holds, then recover."""
        ceilings = parts.limits(job)[-1]
        if other := sorted(set(ceilings) - {"macs", "params"}):
            raise UsageError(f"--method dalr takes --macs or --params; received a budget of {other[0]}")
        module = job.network.module
        names = candidates(module, job.network.classifier)
        with lowrank.watching(module, names, self.positions) as moments:
            inference.logits_of(module, job.target, job.network.preprocess)
        chosen: dict[str, Choice] = {}
        before = dict(zip(("macs", "params"), macs.measure(module, job.network.example()), strict=True))
        for kind, ceiling in ceilings.items():
            more = allocate(ladders(module, moments, kind, job.options.multiple), before[kind] - ceiling)
            for name, one in more.items():
                if name not in chosen or one.rank < chosen[name].rank:
                    chosen[name] = one
        for name, one in chosen.items():
            layer = module.get_submodule(name)
            weight, bias = lowrank.matrix(layer), layer.bias
            made = lowrank.factors(weight, bias, moments[name], one.rank, self.form, self.ridge)  # type: ignore[arg-type]
            surgery.split(module, name, made)
        _record(job, chosen)
        work.learn(job, parts.chosen_objective(job), job.options.recover, "recover-dalr", choose=True)


def candidates(module: nn.Module, classifier: str) -> list[str]:
    """Layers that can become pairs: not the classifier, none whose weight is shared."""
    owners: dict[int, int] = {}
    for _, tensor in module.named_parameters(remove_duplicate=False):
        owners[id(tensor)] = owners.get(id(tensor), 0) + 1
    return [
        name
        for name, part in module.named_modules()
        if name != classifier and lowrank.fits(part) and owners[id(part.weight)] == 1
    ]


def ladders(
    module: nn.Module, moments: Mapping[str, lowrank.Moments], kind: str, multiple: int
) -> list[list[Choice]]:
    """For each layer that ran, its ranks that save something, in multiples, the largest first."""
    found = []
    for name, seen in moments.items():
        if not seen.count:
            continue
        weight = lowrank.matrix(module.get_submodule(name))
        m, n = weight.shape
        lost = lowrank.spectrum(weight, seen)
        each = seen.positions if kind == "macs" else 1
        ranks = range(multiple, min(m, n) + 1, multiple)
        steps = [Choice(name, k, each * (m * n - k * (m + n)), float(lost[k])) for k in ranks]
        found.append([one for one in reversed(steps) if one.saved > 0])
    return [steps for steps in found if steps]


def allocate(ladders: list[list[Choice]], needed: float) -> dict[str, Choice]:
    """Ranks that save `needed`, each step the one that loses least output energy for what it saves; BudgetNotMet."""
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
            raise BudgetNotMet(
                f"low rank saves {needed - short:.0f} of the {needed:.0f} that the budget asks for; "
                "give a larger --macs or --params, or cut channels with another method"
            )
        chosen[best[1].layer] = best[1]
    return chosen


def _record(job: Job, chosen: Mapping[str, Choice]) -> None:
    ranks = tuple(LowRank(name, one.rank) for name, one in chosen.items())
    lost = {name: round(one.lost, 6) for name, one in chosen.items()}
    plan = PruningPlan((), ranks, {"method": "dalr", "output_energy_lost": lost})
    entry: dict[str, Any] = {"cut": 0, "agreement_after_cut": parts.agreement(job)}
    entry["macs"], entry["params"] = macs.measure(job.network.module, job.network.example())
    job.trace.append(entry)
    job.plans.append(plan)
    if job.run:
        job.run.metric(stage="cut", step=0, **entry)
        job.run.log(f"low rank: {json.dumps(entry)}")
    job.network.history.append({"command": "cut", "plan": plan.to_json(), "trace": entry})
