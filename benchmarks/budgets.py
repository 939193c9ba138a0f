"""Latency budgets on ONNX Runtime, and what is left of the network: against a MACs budget and uniform width.

    python -m benchmarks.budgets --data DIR --work DIR [--only GLOB] [--list]

Four networks, each cut to 0.7, 0.5 and 0.35 of its own latency (batch 1, one thread), three ways: as `--latency` does,
which makes a plan by the knapsack over the layer table, one by a MACs budget and one of uniform width and takes the one
that agrees most, here on the images of the row (`of_ways`, `taken`); a MACs budget alone; and uniform width alone. All
are corrected until they are measured at the same latency. Scores are those of `--score measured` on the paintings of
PACS; nothing is trained after the cut, batch norms are re-estimated. `agreement` is the share of all 2,048 paintings on
which the cut network says what the dense one says.

Only EfficientNet-Lite0 has public weights on a machine without a network; the others learn PACS photos and paintings
from nothing for a few minutes (`training` in each row), so their answers mean something, not much. ConvNeXt has no
batch norm: nothing is re-estimated, and its agreement shows the bare cut.

A way that misses the band is shown by its nearest plan, `missed` says so.

`interrupted` is the share of calls that other work on the machine interrupted; they were not counted. Rows with more
than a few percent come from a busy machine: their latencies scatter by as much as the ways differ.

Rows are written as they finish and skipped when present; the dense networks and their layer tables stay in --work.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune import checkpoint, inference, train
from edgeprune.artifact import write_atomically
from edgeprune.bench import machine
from edgeprune.bench.table import LayerTable
from edgeprune.commands import layers, stopwatch
from edgeprune.commands.stopwatch import Stopwatch
from edgeprune.data import folder
from edgeprune.data.pixels import Pixels
from edgeprune.errors import BudgetNotMet
from edgeprune.methods import latency_plan, learning
from edgeprune.model import Network
from edgeprune.objectives.source import Source
from edgeprune.opening import open_network
from edgeprune.options import AdaptOptions, ModelOptions
from edgeprune.plan import PruningPlan
from edgeprune.prune import budget, deadline, graph, macs, score, surgery
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Rules
from edgeprune.prune.latency import Predictor
from edgeprune.prune.macs import Costs

Row = dict[str, Any]
RESULTS = Path(__file__).with_name("results") / "budgets.json"
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
SIZE = 96
SHARES = (0.5, 0.35, 0.7)
WAYS = ("latency", "macs", "uniform")
BAND = (0.96, 1.01)  # narrower than the command's, so that rows at one share are at one latency
SCORED = 256  # images that channels are scored on
STEPS = {
    "torchvision:resnet18": 320,
    "timm:mobilenetv2_100": 320,
    "timm:tf_efficientnet_lite0": 160,
    "timm:convnext_atto": 400,
}


@dataclass
class Case:
    """A dense network with all that a plan needs."""

    network: Network
    images: Pixels
    found: Couplings
    costs: Costs
    scores: Mapping[str, Tensor]
    table: LayerTable
    facts: Row
    answers: Tensor


def prepare(spec: str, data: Path, work: Path, weights: Path | None) -> Case:
    """Train or open the dense network, score it, and measure its layers; what an earlier call made is taken up."""
    file = work / f"{spec.partition(':')[2]}.safetensors"
    facts = file.with_suffix(".json")
    if not file.is_file():
        network = _train(spec, data, weights)
        work.mkdir(parents=True, exist_ok=True)
        checkpoint.write(file, network)
        facts.write_text(json.dumps(network.history[-1]))
    network = checkpoint.read(file)
    images = folder.unlabelled(data / "pacs160_art_painting", network.preprocess)
    few = images.spread(SCORED)
    table = file.with_suffix(".table.json")
    if not table.is_file():
        layers.save(layers.measured_here(network), table)
    found = graph.find(network.module, network.example())
    scores = score.of("measured", network.module, found, network.preprocess, few)
    costs = macs.trace(network.module, network.example(), found)
    answers = inference.logits_of(network.module, images, network.preprocess).argmax(1)
    known = json.loads(facts.read_text())
    return Case(network, images, found, costs, scores, LayerTable.read(table), known, answers)


def _train(spec: str, data: Path, weights: Path | None) -> Network:
    begin, steps = time.monotonic(), STEPS[spec]
    torch.manual_seed(0)
    known = weights is not None and "lite0" in spec
    words = {"weights": str(weights), "map_by_order": True} if known else {"weights": "none"}
    options = ModelOptions(classes=str(len(CLASSES)), size=SIZE, **words)
    network, _ = open_network(spec, options, CLASSES)
    sets = [
        folder.labelled(data / f"pacs160_{d}", network.preprocess, CLASSES) for d in ("photo", "art_painting")
    ]
    source = sets[0].subset(range(len(sets[0])))
    other = sets[1].subset(range(len(sets[1])))
    assert source.labels is not None
    assert other.labels is not None
    both = Pixels(
        torch.cat([source.take(torch.arange(len(source))), other.take(torch.arange(len(other)))]),
        torch.cat([source.labels, other.labels]),
        source.names + other.names,
        [],
        CLASSES,
    )
    settings = learning.settings(AdaptOptions(lr=5e-4 if known else 2e-3, device="cpu"), steps, validations=1)
    train.fit(network, learning.make(Source, network), both, both, settings)
    network.history.append(
        {
            "command": "budgets",
            "from": "ImageNet weights" if known else "nothing",
            "steps": steps,
            "batch": settings.batch,
            "seconds": round(time.monotonic() - begin),
            "accuracy_on_what_it_learned": inference.evaluate(network, both.spread(1024)),
        }
    )
    return network


def ways(case: Case, way: str, dense_ms: float) -> dict[str, latency_plan.Maker]:
    """What each way makes of an aim in milliseconds; that of the command tries three, the others one."""
    plain = {
        name: latency_plan.by_macs(case.costs, case.found, case.scores, {}, rules, dense_ms)
        for name, rules in (("macs", Rules()), ("uniform", Rules(rank="local")))
    }
    if way != "latency":
        return {way: plain[way]}
    predictor = Predictor.of(case.costs, case.table, case.costs, dense_ms)

    def by_table(aim: float) -> PruningPlan:
        return budget.choose(case.costs, case.found, case.scores, {"latency": aim}, Rules(), predictor)

    return {"table": by_table, **plain}


def run(case: Case, share: float, way: str) -> Row:
    """One row: cut to the latency, measure, re-estimate, compare."""
    module = case.network.module
    begin = time.monotonic()
    stopwatch.NARROW, stopwatch.MOST_REPEATS = 0.02, 8  # rows are compared with each other
    with Stopwatch(module, case.network.example()) as watch:
        limit = share * watch.dense_ms
        tried: list[tuple[float, PruningPlan]] = []

        def measure(plan: PruningPlan) -> float:
            tried.append((watch(_cut(case, plan)), plan))
            return tried[-1][0]

        made, missed = ways(case, way, watch.dense_ms), ""
        try:
            plan = latency_plan.better(made, measure, limit, BAND, lambda plan: _agreement(case, plan))
        except BudgetNotMet as err:
            if not tried:
                return {"failed": str(err), "seconds": round(time.monotonic() - begin)}
            plan, missed = min(tried, key=lambda t: abs(t[0] / limit - deadline.CENTRE))[1], str(err)
        slim = _cut(case, plan)
        verdict = min(
            (watch.verdict(slim) for _ in range(2)), key=lambda v: (v.ci_high - v.ci_low) / v.speedup
        )
    kept = case.costs.widths({c.root: len(c.keep) for c in plan.cuts})
    return {
        "agreement": _agreement(case, plan),
        "of_ways": plan.why.get("agreement", {}),
        "taken": plan.why.get("way"),
        "batchnorm": any(isinstance(m, nn.BatchNorm2d) for m in slim.modules()),
        "latency_kept": 1 / verdict.speedup,
        "latency_kept_low": 1 / verdict.ci_high,
        "latency_kept_high": 1 / verdict.ci_low,
        "of_requested": 1 / verdict.speedup / share,
        "missed": missed,
        "macs_kept": float(case.costs.macs(kept) / case.costs.macs(case.costs.full)),
        "params_kept": float(case.costs.params(kept) / case.costs.params(case.costs.full)),
        "tries": [took / limit for took, _ in tried],
        "dense_ms": watch.dense_ms,
        "interrupted": watch.interrupted,
        "seconds": round(time.monotonic() - begin),
    }


def _agreement(case: Case, plan: PruningPlan) -> float:
    """Of all images, after statistics are re-estimated."""
    slim, pre = _cut(case, plan), case.network.preprocess
    inference.reestimate_batchnorm(slim, case.images, pre)
    after = inference.logits_of(slim, case.images, pre).argmax(1)
    return float((after == case.answers).double().mean())


def _cut(case: Case, plan: PruningPlan) -> nn.Module:
    slim = copy.deepcopy(case.network.module)
    surgery.apply(slim, plan, case.found)
    return slim


def keys() -> Iterator[tuple[str, float, str]]:
    """All rows, network by network."""
    for spec in STEPS:
        for share in SHARES:
            for way in WAYS:
                yield spec, share, way


def _load() -> list[Row]:
    return list(json.loads(RESULTS.read_text())["rows"]) if RESULTS.exists() else []


def _save(rows: list[Row]) -> None:
    host = machine.describe()
    facts = {"command": "python -m benchmarks.budgets", "packages": host["packages"], "cpu": host["cpu"]}
    facts |= {"size": SIZE, "scored": SCORED, "batch": 1, "threads": 1, "seed": 0}
    write_atomically(RESULTS, (json.dumps({**facts, "rows": rows}, indent=1) + "\n").encode())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of pacs160_photo and pacs160_art_painting")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/budgets"), help="dense networks and their tables"
    )
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0's ImageNet weights")
    parser.add_argument("--only", default="*", help="glob over NETWORK/SHARE/WAY")
    parser.add_argument("--list", action="store_true", help="print the rows and their state")
    args = parser.parse_args()
    rows, cases = _load(), {}
    done = {(r["network"], r["share"], r["way"]) for r in rows}
    for key in keys():
        name = "/".join(map(str, key))
        if not fnmatch.fnmatch(name, args.only):
            continue
        if args.list:
            print(f"{'done' if key in done else 'open'}  {name}")
        elif key not in done:
            if args.data is None:
                parser.error("--data DIR is missing; benchmarks/README.md says how to get it")
            if key[0] not in cases:
                cases = {key[0]: prepare(key[0], args.data, args.work, args.weights)}
            found = run(cases[key[0]], key[1], key[2])
            rows.append(
                {"network": key[0], "share": key[1], "way": key[2], **found, "training": cases[key[0]].facts}
            )
            _save(rows)
            print(name, found.get("failed") or f"agreement {found['agreement']:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
