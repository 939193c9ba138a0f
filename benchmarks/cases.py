"""The rows of benchmarks.accuracy: every objective and every pruning method on the tasks that have images for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.tasks import TASKS, Task
from edgeprune import catalog
from edgeprune.catalog import OBJECTIVES

METHODS = (
    "distill",
    "tcp",
    "admp",
    "swmmd",
    "itmc",
    "tana",
    "auto",
    "prune-then-adapt",
    "adapt-then-prune",
    "two-stage",
    "uniform",
    "dalr",
)
TORCH_PRUNING = "torch-pruning"  # its choice by its own defaults, recovered by distillation as `--plan` is
# With ten labelled target images a class; the second is the control: the same recovery at uniform width.
LABELLED: Mapping[str, tuple[str, ...]] = {
    "tana+labelled": (),
    "tana+labelled+uniform": ("--set", "statistic=given", "--rank", "local", "--score", "magnitude"),
}
# At 40% of the inner channels and of the parameters: admp, and what its claim compares it with. On digits at a tenth
# of the parameters too: at 40% tcp is within the 4 points that the claim is about.
COMPARED = (("admp", ()), ("tcp", ()), ("distill+magnitude", ("--score", "magnitude")))


@dataclass(frozen=True)
class Case:
    """One row: what is run. name: of the objective or the method, with its knobs. words: what only this row says."""

    stage: str
    task: str
    name: str
    seed: int
    words: tuple[str, ...] = ()
    budget: str = ""

    @property
    def key(self) -> str:
        """What tells this row from all others."""
        return "/".join(filter(None, (self.stage, self.task, self.name, self.budget, str(self.seed))))


def adapting(seeds: tuple[int, ...]) -> Iterator[Case]:
    """Every objective on every task that it can be used on; partial twins on the partial task."""
    for task in TASKS.values():
        free = not task.cloud
        for seed in seeds:
            for name in OBJECTIVES:
                needs = "source" in OBJECTIVES[name].needs
                if free and needs:
                    continue
                yield Case("adapt", task.name, name, seed, ("--objective", name))
                if name == "auto" and task.older is not None:  # with its own features alone
                    yield Case("adapt", task.name, "auto+own", seed, ("--objective", name))
                if task.name == "pacs-partial" and name == "swmmd":  # all classes weigh the same: plain MMD
                    plain = ("--objective", name, "--set", "momentum=1")
                    yield Case("adapt", task.name, "swmmd+momentum=1", seed, plain)
                switched = (needs or name in ("auto", "shot", "nrc")) and name != "swmmd"
                if task.name == "pacs-partial" and switched:
                    yield Case(
                        "adapt",
                        task.name,
                        f"{name}+partial",
                        seed,
                        ("--objective", name, "--set", "partial=true"),
                    )


def adapted(task: str, method: str, seed: int) -> Case:
    """The row whose network a pruning method begins with: `auto`'s; swmmd, on its own task, goes on with its own."""
    if task == "pacs-partial":
        if method.partition("+")[0] == "swmmd":
            return Case("adapt", task, "swmmd", seed, ("--objective", "swmmd"))
        return Case("adapt", task, "auto+partial", seed, ("--objective", "auto", "--set", "partial=true"))
    return Case("adapt", task, "auto", seed, ("--objective", "auto"))


def fitting(task: Task, method: str) -> tuple[str, ...]:
    """Words that a method needs on a task: to adapt as the partial task's dense network was."""
    adapts = method in ("prune-then-adapt", "adapt-then-prune", "two-stage")
    return ("--set", "objective.partial=true") if task.name == "pacs-partial" and adapts else ()


def common(task: Task, case: Case) -> tuple[str, ...]:
    """What the task's commands share; but swmmd prunes without --lr, as its stages learn by steps of two lengths."""
    words = task.common
    if case.stage != "prune" or case.name.partition("+")[0] != "swmmd" or "--lr" not in words:
        return words
    here = words.index("--lr")
    return words[:here] + words[here + 2 :]


def pruning(seeds: tuple[int, ...]) -> Iterator[Case]:
    """Every method that a task has images for at half and 30% of the MACs; admp and what it is compared with by
    channels and parameters too.
    """
    for task in TASKS.values():
        for seed in seeds:
            for budget in ("macs=0.5", "macs=0.3"):
                kind, share = budget.split("=")
                for name in METHODS:
                    if not task.cloud and "source" in catalog.METHODS[name].needs:
                        continue
                    words: tuple[str, ...] = ("--method", name, f"--{kind}", share, *fitting(task, name))
                    yield Case("prune", task.name, name, seed, words, budget)
                for score in ("magnitude", "taylor", "random"):
                    words = ("--method", "distill", "--score", score, f"--{kind}", share)
                    yield Case("prune", task.name, f"distill+{score}", seed, words, budget)
                yield Case("prune", task.name, TORCH_PRUNING, seed, (), budget)
                for name, more in LABELLED.items():
                    learned = ("--method", "tana", f"--{kind}", share, *more)
                    yield Case("prune", task.name, name, seed, learned, budget)
            smaller = ("params=0.1",) if task.name == "digits" else ()
            for name, more in COMPARED if task.cloud else ():
                for budget in ("channels=0.4", "params=0.4", *smaller):
                    kind, share = budget.split("=")
                    words = ("--method", name.partition("+")[0], f"--{kind}", share, *more)
                    yield Case("prune", task.name, name, seed, words, budget)
