"""Names a user types in a shell, and where each one lives: readable without importing any of it.

A new method, objective, score or runtime is one file and one line here. `load` imports the one that is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeprune.errors import UsageError, nearest


@dataclass(frozen=True)
class Entry:
    """One name: where it lives ("package.module:attribute"), what it is, and what it needs from the user.

    `needs` holds any of "source" (labelled source images) and "layers" (a convolutional network).
    `extra` is the optional dependency group without which it cannot run.
    """

    where: str
    summary: str
    paper: str = ""
    needs: frozenset[str] = frozenset()
    extra: str = "compress"


_SOURCE = frozenset({"source"})

OBJECTIVES: Mapping[str, Entry] = {
    "source": Entry(
        "edgeprune.objectives.source:Source", "cross entropy on labelled source images", needs=_SOURCE
    ),
    "mcc": Entry(
        "edgeprune.objectives.mcc:MCC",
        "minimum class confusion",
        "Jin et al., Minimum Class Confusion, ECCV 2020, arXiv 1912.03699",
        _SOURCE,
    ),
    "cdan": Entry(
        "edgeprune.objectives.cdan:CDAN",
        "conditional adversarial alignment, with entropy weights",
        "Long et al., Conditional Adversarial Domain Adaptation, NeurIPS 2018, arXiv 1705.10667",
        _SOURCE,
    ),
    "fixmatch": Entry(
        "edgeprune.objectives.fixmatch:FixMatch",
        "confident pseudo-labels of a weak view teach a strong view",
        "Sohn et al., FixMatch, NeurIPS 2020, arXiv 2001.07685",
        _SOURCE,
    ),
    "shot": Entry(
        "edgeprune.objectives.shot:SHOT",
        "information maximisation and centroid pseudo-labels; classifier frozen",
        "Liang et al., Do We Really Need to Access the Source Data?, ICML 2020, arXiv 2002.08546",
    ),
    "adabn": Entry(
        "edgeprune.objectives.adabn:AdaBN",
        "batch-norm statistics of the target, nothing else",
        "Li et al., Revisiting Batch Normalization, 2016, arXiv 1603.04779",
    ),
}

METHODS: Mapping[str, Entry] = {
    "distill": Entry(
        "edgeprune.methods.distill:DistillPruning",
        "score, cut, re-estimate batch-norm, recover by distillation on target images",
        "distillation: Hinton et al., 2015, arXiv 1503.02531",
    ),
}

SCORES: Mapping[str, Entry] = {
    "magnitude": Entry("edgeprune.prune.score:Magnitude", "L2 norm of each channel over its coupled layers"),
    "taylor": Entry(
        "edgeprune.prune.score:Taylor",
        "first-order change of the divergence between dense and gated network, on unlabelled target images",
        "after Molchanov et al., CVPR 2019, arXiv 1906.10771; the label-free loss is ours",
    ),
}

RUNTIMES: Mapping[str, Entry] = {
    "ort": Entry("edgeprune.runtime.ort:open", "ONNX Runtime", extra="cpu"),
    "torch": Entry("edgeprune.runtime.torch:open", "PyTorch eager", extra="compress"),
}


def entry(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """Look a name up; an unknown one is a UsageError that names the nearest."""
    try:
        return table[name]
    except KeyError:
        raise UsageError(f"no {what} is called {name!r}: {nearest(name, table)}") from None


def load(table: Mapping[str, Entry], name: str, what: str) -> Any:
    """Import what a name stands for and return it."""
    module, _, attribute = entry(table, name, what).where.partition(":")
    return getattr(importlib.import_module(module), attribute)
