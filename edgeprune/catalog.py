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

    `needs` holds "source" where labelled source images are needed.
    `extra` is the optional dependency group without which it cannot run. `uses` holds what else it can learn from
    ("labelled-target").
    """

    where: str
    summary: str
    paper: str = ""
    needs: frozenset[str] = frozenset()
    extra: str = "compress"
    uses: frozenset[str] = frozenset()


_SOURCE = frozenset({"source"})

OBJECTIVES: Mapping[str, Entry] = {
    "auto": Entry(
        "edgeprune.objectives.auto:Auto",
        "the recommended one, with and without source: sure, diverse, and consistent over strong views",
        "after SHOT, arXiv 2002.08546, and FixMatch, arXiv 2001.07685; the joining is ours",
    ),
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
    "dann": Entry(
        "edgeprune.objectives.dann:DANN",
        "adversarial alignment of features",
        "Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, arXiv 1505.07818",
        _SOURCE,
    ),
    "dan": Entry(
        "edgeprune.objectives.dan:DAN",
        "multi-kernel mean discrepancy of features",
        "Long et al., Deep Adaptation Networks, ICML 2015, arXiv 1502.02791",
        _SOURCE,
    ),
    "jan": Entry(
        "edgeprune.objectives.jan:JAN",
        "joint mean discrepancy of features and predictions",
        "Long et al., Joint Adaptation Networks, ICML 2017, arXiv 1605.06636",
        _SOURCE,
    ),
    "bnm": Entry(
        "edgeprune.objectives.bnm:BNM",
        "batch nuclear-norm maximisation",
        "Cui et al., Batch Nuclear-norm Maximization, CVPR 2020, arXiv 2003.12237",
        _SOURCE,
    ),
    "swmmd": Entry(
        "edgeprune.objectives.swmmd:SWMMD",
        "soft-weighted mean discrepancy, for a target with fewer classes (a reconstruction)",
        "after Ma et al., Small Is Beautiful, TNNLS 2022",
        _SOURCE,
    ),
    "shot": Entry(
        "edgeprune.objectives.shot:SHOT",
        "information maximisation and centroid pseudo-labels; classifier frozen",
        "Liang et al., Do We Really Need to Access the Source Data?, ICML 2020, arXiv 2002.08546",
    ),
    "nrc": Entry(
        "edgeprune.objectives.nrc:NRC",
        "predictions agree with those of nearest neighbours",
        "Yang et al., Exploiting the Intrinsic Neighborhood Structure, NeurIPS 2021, arXiv 2110.04202",
    ),
    "tent": Entry(
        "edgeprune.objectives.tent:Tent",
        "entropy, through the gains and shifts of normalisation layers alone",
        "Wang et al., Tent, ICLR 2021, arXiv 2006.10726",
    ),
    "adabn": Entry(
        "edgeprune.objectives.adabn:AdaBN",
        "batch-norm statistics of the target, nothing else",
        "Li et al., Revisiting Batch Normalization, 2016, arXiv 1603.04779",
    ),
}

METHODS: Mapping[str, Entry] = {
    "auto": Entry(
        "edgeprune.methods.auto:AutoPruning",
        "the recommended one, with and without source: one cut, then it imitates the dense network, layer by layer too",
        "distillation: Hinton et al., 2015, arXiv 1503.02531; hints on shared channels are ours",
    ),
    "distill": Entry(
        "edgeprune.methods.distill:DistillPruning",
        "score, cut, re-estimate batch-norm, recover by distillation on target images",
        "distillation: Hinton et al., 2015, arXiv 1503.02531",
    ),
    "tcp": Entry(
        "edgeprune.methods.tcp:TCP",
        "transfer channel pruning: rank by both domains' losses, remove a few, fine-tune, and again",
        "Yu et al., Transfer Channel Pruning, IJCNN 2019, arXiv 1904.02654",
        _SOURCE,
    ),
    "admp": Entry(
        "edgeprune.methods.admp:ADMP",
        "adversarial soft and hard masks on channels, with a full-size teacher (a reconstruction)",
        "after Feng et al., ADMP, 2020, arXiv 2006.04127",
        _SOURCE,
    ),
    "swmmd": Entry(
        "edgeprune.methods.swmmd:SWMMDPruning",
        "partial adaptation by soft-weighted MMD; channels leave by batch-norm gradients (a reconstruction)",
        "after Ma et al., Small Is Beautiful, TNNLS 2022",
        _SOURCE,
    ),
    "itmc": Entry(
        "edgeprune.methods.itmc:ITMC",
        "distillation from a teacher that adapts on, and channel pruning, in alternation (a reconstruction)",
        "after Wang et al., Iterative Transfer Model Compression, Pattern Recognition 164, 2025",
        _SOURCE,
    ),
    "tana": Entry(
        "edgeprune.methods.tana:TANA",
        "layers lose channels by cumulative activation on the target, the emptiest first (a reconstruction)",
        "after Zhong et al., Target Aware Network Adaptation, ECCV workshops 2018, arXiv 1810.01104",
        uses=frozenset({"labelled-target"}),
    ),
    "dalr": Entry(
        "edgeprune.methods.dalr:DALR",
        "low rank instead of fewer channels: layers become pairs in closed form from target activations",
        "after Masana et al., Domain-Adaptive Deep Network Compression, ICCV 2017; convolutions are ours",
    ),
    "prune-then-adapt": Entry(
        "edgeprune.methods.baselines:PruneThenAdapt",
        "baseline, from the source network: cut it, repair it on source, then adapt it",
        needs=_SOURCE,
    ),
    "two-stage": Entry(
        "edgeprune.methods.baselines:TwoStage",
        "baseline, from the source network: prune it in several cuts on source, then adapt it by dan",
        "Yu et al., Transfer Channel Pruning, IJCNN 2019, arXiv 1904.02654, table 1",
        _SOURCE,
    ),
    "adapt-then-prune": Entry(
        "edgeprune.methods.baselines:AdaptThenPrune",
        "baseline, from the adapted network: cut it, then fine-tune it without a teacher",
    ),
    "uniform": Entry(
        "edgeprune.methods.baselines:Uniform",
        "baseline: the same share of every layer's channels stays, then distillation",
    ),
}

SCORES: Mapping[str, Entry] = {
    "measured": Entry(
        "edgeprune.prune.scores.measured:Measured",
        "taylor within a layer; between layers what cutting each by half does, measured on target images",
        "after Molchanov et al., CVPR 2019, arXiv 1906.10771; the label-free loss and the measuring are ours",
    ),
    "taylor": Entry(
        "edgeprune.prune.scores.taylor:Taylor",
        "expected change of the answer on unlabelled target images when a channel goes, to second order",
        "after Molchanov et al., CVPR 2019, arXiv 1906.10771; the label-free loss is ours",
    ),
    "taylor-labels": Entry(
        "edgeprune.prune.scores.taylor:TaylorLabels",
        "first-order change of the cross entropy on labelled source images",
        "Molchanov et al., CVPR 2019, arXiv 1906.10771",
        _SOURCE,
    ),
    "magnitude": Entry(
        "edgeprune.prune.scores.magnitude:Magnitude",
        "L2 norm of each channel over its coupled layers",
        "Fang et al., DepGraph, CVPR 2023, arXiv 2301.12900",
    ),
    "bn-scale": Entry(
        "edgeprune.prune.scores.bn_scale:BNScale",
        "gain of each channel's norms",
        "Liu et al., Network Slimming, ICCV 2017, arXiv 1708.06519",
    ),
    "lamp": Entry(
        "edgeprune.prune.scores.lamp:LAMP",
        "magnitude relative to all that is larger in the coupling",
        "Lee et al., LAMP, ICLR 2021, arXiv 2010.07611",
    ),
    "fpgm": Entry(
        "edgeprune.prune.scores.fpgm:FPGM",
        "distance of each filter from the others of its layer",
        "He et al., FPGM, CVPR 2019, arXiv 1811.00250",
    ),
    "activation": Entry(
        "edgeprune.prune.scores.activation:Activation",
        "energy that each channel hands on, on unlabelled target images",
        "after Sun et al., Wanda, ICLR 2024, arXiv 2306.11695",
    ),
    "random": Entry("edgeprune.prune.scores.random:Random", "chance, the floor for all others"),
}

RUNTIMES: Mapping[str, Entry] = {
    "ort": Entry("edgeprune.runtime.ort:open", "ONNX Runtime", extra="cpu"),
    "torch": Entry("edgeprune.runtime.torch:open", "PyTorch eager", extra="compress"),
    "tensorrt": Entry("edgeprune.runtime.tensorrt:open", "TensorRT engines, 8.6 to 11", extra="tensorrt"),
    "tensorrt-rtx": Entry("edgeprune.runtime.tensorrt:open", "TensorRT-RTX engines", extra="rtx"),
    "torch-compile": Entry(
        "edgeprune.runtime.torch:open_compiled", "PyTorch compiled (torch.compile)", extra="compress"
    ),
}


def entry(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """Look a name up; an unknown one is a UsageError that names the nearest."""
    try:
        return table[name]
    except KeyError:
        hint = nearest(name, table)
        hint += f" There are {', '.join(table)}" if hint.endswith("?") else ""
        raise UsageError(f"no {what} is called {name!r}: {hint}") from None


def load(table: Mapping[str, Entry], name: str, what: str) -> Any:
    """Import what a name stands for and return it."""
    module, _, attribute = entry(table, name, what).where.partition(":")
    return getattr(importlib.import_module(module), attribute)
