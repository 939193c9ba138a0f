"""What is left right after one cut, by each criterion that ranks channels: no label, nothing trained.

    python -m benchmarks.scores [--data DIR] [--work DIR] [--only GLOB] [--list]

The adapted networks of the tasks pacs and cifar-jpeg, cut once to a share of their MACs; batch-norm statistics are
taken anew from the target. `agreement` is the share of 1,024 target images on which the cut network says what the
dense one says. Criteria that need labels are left out. Rows are written as they finish and skipped when present.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import sys
import time
from pathlib import Path

from benchmarks import accuracy
from benchmarks.accuracy import Place, Row
from benchmarks.cases import Case
from benchmarks.tasks import TASKS
from edgeprune import checkpoint, inference
from edgeprune.catalog import SCORES
from edgeprune.data import folder
from edgeprune.prune import budget, graph, macs, score, surgery
from edgeprune.prune.ladder import Rules

RESULTS = Path(__file__).with_name("results") / "scores.json"
SHARES = (0.7, 0.5, 0.35)
IMAGES = 1024


def rows(task: str, name: str, place: Place) -> list[Row]:
    """One row a share, for one criterion and the adapted network of a task."""
    case = Case("adapt", task, "auto", 0, ("--objective", "auto"))
    accuracy.made(case, place)
    network = checkpoint.read(place.run(case), [w for w in TASKS[task].trust if ":" in w])
    target = folder.unlabelled(TASKS[task].images(place.work, place.data)[1], network.preprocess)
    probe, pre, dense = target.spread(IMAGES), network.preprocess, network.module
    answers = inference.logits_of(dense, probe, pre).argmax(1)
    found = graph.find(dense, network.example())
    costs = macs.trace(dense, network.example(), found)
    begun = time.monotonic()
    scores = score.of(name, dense, found, pre, target)
    seconds = round(time.monotonic() - begun, 1)
    made = []
    for share in SHARES:
        limit = {"macs": share * float(costs.macs(costs.full))}
        slim = copy.deepcopy(dense)
        surgery.apply(slim, budget.choose(costs, found, scores, limit, Rules()), found)
        inference.reestimate_batchnorm(slim, target, pre)
        same = inference.logits_of(slim, probe, pre).argmax(1) == answers
        agreement = round(float(same.double().mean()), 4)
        made.append({"key": f"{task}/{name}/{share:g}", "agreement": agreement, "scoring_seconds": seconds})
    return made


def main() -> int:
    """Measure the rows that are asked for and open, or say which there are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="glob over TASK/SCORE")
    parser.add_argument("--data", type=Path, help="folder made by benchmarks.data")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--list", action="store_true", help="print the rows and their state")
    parser.add_argument("--device", default="cpu", help="of the adapted network, where it has to be made")
    args = parser.parse_args()
    done = {r["key"]: r for r in accuracy.load(RESULTS)}
    for task in ("pacs", "cifar-jpeg"):
        for name in (n for n, entry in SCORES.items() if not entry.needs):
            if not fnmatch.fnmatch(f"{task}/{name}", args.only):
                continue
            there = all(f"{task}/{name}/{share:g}" in done for share in SHARES)
            if args.list:
                print(f"{'done' if there else 'open'}  {task}/{name}")
            elif not there:
                for row in rows(task, name, Place(args.data, args.work, args.device)):
                    done[row["key"]] = row
                    print(row["key"], row["agreement"], flush=True)
                accuracy.save(list(done.values()), RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
