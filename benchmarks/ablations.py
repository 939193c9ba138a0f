"""What each part of a method is worth: one method, one knob changed, everything else equal.

    python -m benchmarks.ablations [--task GLOB] [--only GLOB] [--budget GLOB] [--seeds 0,1,2] [--list | --table]

Rows are made as those of benchmarks.accuracy are (one command of the tool each, the same cloud and adapted models in
--work, written as they finish, skipped when present) and go to results/ablations.json. A method that has more to ask
appends lines to ABLATIONS.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks import accuracy
from benchmarks.accuracy import Place, Row
from benchmarks.cases import Case, fitting
from benchmarks.tasks import TASKS, Task
from edgeprune import catalog

RESULTS = Path(__file__).with_name("results") / "ablations.json"
BUDGETS = ("macs=0.5", "macs=0.3")
OF_ADMP = ("channels=0.4", "params=0.4")  # what its claims are about


class Ablation(NamedTuple):
    """What is asked, of which method, by which knobs (--set), and by which other options of the command, in pairs.

    source: whether those look at source images where the method does not.
    """

    question: str
    method: str
    knobs: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    source: bool = False

    @property
    def name(self) -> str:
        """The method and what is changed; the row of the method unchanged is its name alone."""
        flags = zip(self.words[::2], self.words[1::2], strict=True)
        return "+".join((self.method, *self.knobs, *(f"{f.removeprefix('--')}={v}" for f, v in flags)))


ABLATIONS = (
    Ablation("the paper's score and loss", "tcp"),
    Ablation("the released code's score: min over the domains", "tcp", ("variant=code",)),
    Ablation("max over the domains", "tcp", ("variant=max",)),
    Ablation("no domain adaptation: score and loss", "tcp", ("variant=source", "weight=0")),
    Ablation(
        "the same, as many steps as with it (half of the images: no target's)",
        "tcp",
        ("variant=source", "weight=0"),
        ("--recover", "x0.5"),
    ),
    Ablation("no domain adaptation: score alone", "tcp", ("variant=source",)),
    Ablation("magnitude in its place", "tcp", ("variant=given",), ("--score", "magnitude")),
    Ablation("label-free Taylor in its place", "tcp", ("variant=given",), ("--score", "taylor")),
    Ablation("chance in its place", "tcp", ("variant=given",), ("--score", "random")),
    Ablation("one batch decides, as in the code", "tcp", ("batches=1",)),
    Ablation("one cut", "tcp", ("cuts=1",)),
    Ablation("more and smaller cuts", "tcp", ("cuts=16",)),
    Ablation("lowest scores go, whatever they save", "tcp", (), ("--rank", "threshold")),
    Ablation("with a teacher", "tcp", ("distill=true",)),
    Ablation("fine-tuned by mcc in place of dan", "tcp", (), ("--objective", "mcc")),
    Ablation("the journal's base: dann", "tcp", (), ("--objective", "dann")),
    Ablation("the reconstruction", "itmc"),
    Ablation("teacher as it was", "itmc", ("teacher=fixed",)),
    Ablation("pruning alone", "itmc", ("distill=false", "source=1")),
    Ablation(
        "distillation alone: one uniform cut",
        "itmc",
        ("cuts=1", "score=given"),
        ("--rank", "local", "--score", "magnitude"),
    ),
    Ablation("one cut, then distillation", "itmc", ("cuts=1",)),
    Ablation("student learns on source too", "itmc", ("source=1",)),
    Ablation("score from the cross entropy alone", "itmc", ("score=source",)),
    Ablation("turns of the usual length after the last cut, too", "itmc", ("after=4",)),
    Ablation("so, teacher as it was", "itmc", ("teacher=fixed", "after=4")),
    Ablation("so, teacher goes on by mcc", "itmc", ("after=4",), ("--objective", "mcc")),
    Ablation("so, pruning alone", "itmc", ("distill=false", "source=1", "after=4")),
    Ablation(
        "so, distillation alone: one uniform cut",
        "itmc",
        ("cuts=1", "score=given", "after=2"),
        ("--rank", "local", "--score", "magnitude"),
    ),
    Ablation("so, score from the cross entropy alone", "itmc", ("score=source", "after=4")),
    *(
        Ablation(f"so, student learns on source too{question}", "itmc", ("source=1", *knobs), words)
        for question, knobs, words in (
            (", score from its whole loss, to first order", ("score=student", "after=4"), ()),
            (", the same score, teacher as it was", ("score=student", "teacher=fixed", "after=4"), ()),
            (", the same score, pruning alone", ("score=student", "distill=false", "after=4"), ()),
            (
                ", one uniform cut",
                ("cuts=1", "score=given", "after=2"),
                ("--rank", "local", "--score", "magnitude"),
            ),
        )
    ),
    Ablation("our measured score in its place", "itmc", ("score=given",)),
    Ablation("student with its own MMD", "itmc", ("discrepancy=0.5",)),
    Ablation("warmer teacher", "itmc", ("tau=8",)),
    Ablation("temperature of KD_UDA", "itmc", ("tau=20",)),
    Ablation("even cuts in place of large ones first", "itmc", (), ("--schedule", "linear")),
    Ablation("teacher goes on by mcc in place of dan", "itmc", (), ("--objective", "mcc")),
    Ablation("the reconstruction", "admp"),
    Ablation("no soft mask", "admp", ("soft=none",)),
    Ablation("a random soft mask", "admp", ("soft=random",)),
    Ablation("straight through the top k in place of ADMM", "admp", ("admm=false",)),
    Ablation("neither", "admp", ("soft=none", "admm=false")),
    Ablation("no masks: the plan as it is, the same losses after it", "admp", ("passes=0",)),
    Ablation("no pseudo-labels", "admp", ("pseudo=0",)),
    Ablation("teacher: moving average", "admp", ("teacher=ema",)),
    Ablation("teacher: shares the weights", "admp", ("teacher=joint",)),
    Ablation("KL in place of L1", "admp", ("divergence=kl",)),
    Ablation("after the cut distillation alone", "admp", ("tune=distill",)),
    Ablation("masks from a random start", "admp", (), ("--score", "random")),
    Ablation("a random choice, no masks", "admp", ("passes=0",), ("--score", "random")),
    Ablation("one cut by magnitude, no masks", "admp", ("passes=0",), ("--score", "magnitude")),
    Ablation("no masks, their passes after the cut", "admp", ("passes=0",), ("--recover", "+4")),
    Ablation("the reconstruction", "swmmd"),
    Ablation("plain MMD", "swmmd", ("momentum=1",)),
    Ablation("gradient through the weights", "swmmd", ("through=true",)),
    Ablation("|.| in place of the square", "swmmd", ("power=1",)),
    Ablation("scores by their mean in each layer", "swmmd", ("normalise=layer",)),
    Ablation("lowest scores go, whatever they save", "swmmd", (), ("--rank", "threshold")),
    Ablation("one cut, after adaptation", "swmmd", ("remove=1",)),
    Ablation("our measured score in its place", "swmmd", ("score=given",)),
    Ablation("label-free Taylor in its place", "swmmd", ("score=given",), ("--score", "taylor")),
    Ablation("source-only Taylor in its place", "swmmd", ("score=given",), ("--score", "taylor-labels")),
    Ablation("no teacher", "swmmd", ("distill=false",)),
    Ablation("after the last removal, too, on source and target", "swmmd", ("tune=both",)),
    Ablation("so, plain MMD", "swmmd", ("tune=both", "momentum=1")),
    Ablation("so, label-free Taylor ranks", "swmmd", ("tune=both", "score=given"), ("--score", "taylor")),
    Ablation("no teacher, plain MMD", "swmmd", ("distill=false", "momentum=1")),
    Ablation("the reconstruction", "tana"),
    Ablation("statistic: mean activation", "tana", ("statistic=mean",)),
    Ablation("statistic: mean activation and the weights that read it", "tana", ("statistic=read-mean",)),
    Ablation("statistic: root mean square", "tana", ("statistic=rms",)),
    Ablation("priority by the share of channels alone", "tana", ("priority=share",)),
    Ablation("one threshold for all layers", "tana", ("priority=none",)),
    Ablation("least activation lost for the budget saved", "tana", ("priority=budget",)),
    Ablation("no cap on what a layer loses in one cut", "tana", ("most=1",)),
    Ablation("one cut", "tana", ("cuts=1", "most=1")),
    Ablation(
        "uniform width, the same cuts",
        "tana",
        ("statistic=given",),
        ("--rank", "local", "--score", "magnitude"),
    ),
    Ablation("with hints inside the network", "tana", ("layers=1",)),
    Ablation("the recommended way", "auto"),
    Ablation("three cuts, the same passes", "auto", (), ("--steps", "3")),
    Ablation("so, by label-free Taylor", "auto", (), ("--steps", "3", "--score", "taylor")),
    Ablation("label-free Taylor in place of the measured score", "auto", (), ("--score", "taylor")),
    Ablation("magnitude in its place", "auto", (), ("--score", "magnitude")),
    Ablation("chance in its place", "auto", (), ("--score", "random")),
    Ablation("every layer keeps the same share", "auto", (), ("--rank", "local")),
    Ablation("the adaptation goes on", "auto", (), ("--objective", "auto")),
    Ablation("the baseline", "adapt-then-prune"),
    Ablation("tuned on source alone", "adapt-then-prune", ("tune=source",), source=True),
    Ablation("cut by label-free Taylor", "adapt-then-prune", ("score=taylor",)),
    Ablation("the baseline", "prune-then-adapt"),
    Ablation(
        "with the passes more that adapted the others' dense network on PACS",
        "prune-then-adapt",
        (),
        ("--recover", "+9"),
    ),
    Ablation("cut by the source's Taylor", "prune-then-adapt", ("score=taylor-labels",)),
    Ablation("the baseline", "uniform"),
    Ablation("within layers by Taylor", "uniform", ("score=taylor",)),
)


def cases(seeds: tuple[int, ...]) -> list[Case]:
    """Every ablation on every task that has the images for it, at every budget."""
    made = []
    for task in TASKS.values():
        needy = {a for a in ABLATIONS if a.source or "source" in catalog.METHODS[a.method].needs}
        able = [a for a in ABLATIONS if task.cloud or a not in needy]
        for budget in (*BUDGETS, *OF_ADMP):
            kind, share = budget.split("=")
            for one in (a for a in able if budget in BUDGETS or a.method == "admp"):
                knobs = tuple(word for knob in one.knobs for word in ("--set", knob))
                more = tuple(_added(word, task) for word in one.words)
                words = (
                    "--method",
                    one.method,
                    f"--{kind}",
                    share,
                    *knobs,
                    *fitting(task, one.method),
                    *more,
                )
                made += [Case("prune", task.name, one.name, seed, words, budget) for seed in seeds]
    return made


def _added(word: str, task: Task) -> str:
    """A number as it is; "+4": four more than the task's --recover; "x0.5": half of it."""
    usual = float(task.prune[task.prune.index("--recover") + 1])
    if word.startswith("x"):
        return f"{usual * float(word[1:]):g}"
    return f"{usual + float(word[1:]):g}" if word.startswith("+") else word


def table(rows: list[Row]) -> str:
    """Markdown, one line an ablation and budget: accuracy of all seeds, MACs and parameters kept, and the difference
    to the method as it is, with the number of networks that both began with.

    The method as it is has a line where there are others to compare it with.
    """
    lines = [
        "| task | budget | method | what is asked | accuracy | MACs | parameters | difference (networks) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for budget in (*BUDGETS, *OF_ADMP):
            good = [r for r in rows if (r["task"], r.get("budget")) == (task, budget) and "failed" not in r]
            here = {one: [r for r in good if r["name"] == one.name] for one in ABLATIONS}
            plain = {name: [r for r in good if r["name"] == name] for name in {one.method for one in here}}
            changed = {one.method for one, found in here.items() if found and one.name != one.method}
            for one, found in here.items():
                if found and one.method in changed:
                    cells = (
                        task,
                        budget,
                        one.name,
                        one.question,
                        _facts(found),
                        _gap(found, plain[one.method]),
                    )
                    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _facts(rows: list[Row]) -> str:
    found = [float(r["chosen"]) for r in rows]
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    kept = (statistics.fmean(r[kind] / r[f"dense_{kind}"] for r in rows) for kind in ("macs", "params"))
    return " | ".join((f"{statistics.fmean(found):.1f}{spread}", *(f"{share:.2f}" for share in kept)))


def _gap(rows: list[Row], plain: list[Row]) -> str:
    """Mean difference over the networks that both began with and how many they are; "-" where there are none."""
    if rows == plain:
        return ""
    usual = {(r["seed"], r.get("begins_with")): float(r["chosen"]) for r in plain}
    pairs = [(float(r["chosen"]), usual.get((r["seed"], r.get("begins_with")))) for r in rows]
    gaps = [one - other for one, other in pairs if other is not None]
    return f"{statistics.fmean(gaps):+.1f} ({len(gaps)})" if gaps else "-"


def main() -> int:
    """Run the rows that are asked for and open, or say which there are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="pacs", help="glob over the tasks")
    parser.add_argument("--only", default="*", help="glob over the names, such as 'tcp*'")
    parser.add_argument("--budget", default="*", help="glob over the budgets, such as macs=0.5")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--list", action="store_true", help="print the rows, their state and expected time")
    parser.add_argument("--retry", action="store_true", help="rows that failed are open again")
    parser.add_argument("--table", action="store_true", help="print the rows that are there as Markdown")
    parser.add_argument("--data", type=Path, help="folder made by benchmarks.data")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.table:
        print(table(accuracy.load(RESULTS)))
        return 0
    globs = {"task": args.task, "name": args.only, "budget": args.budget}
    wanted = [
        case
        for case in cases(tuple(int(s) for s in args.seeds.split(",")))
        if all(fnmatch.fnmatch(getattr(case, field), glob) for field, glob in globs.items())
    ]
    if args.list:
        accuracy.show(wanted, accuracy.load(RESULTS))
    else:
        accuracy.work(wanted, Place(args.data, args.work, args.device), RESULTS, retry=args.retry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
