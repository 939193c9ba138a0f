"""docs/claims.md from results: what the papers claim and what our rows say, the ablations, the low-rank layers.

Written by `python -m benchmarks.pages`; a claim whose rows are not there says so, a part without rows is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import ablations, accuracy, dalr
from benchmarks.accuracy import Row

UNPRUNED = "its own network before the cut"
HALFWAY = "halfway from distill+magnitude to the network before the cut"


class Claim(NamedTuple):
    """`left` is at least `least` points above `right` (a row's name, or UNPRUNED) on a task at a budget."""

    of: str
    left: str
    right: str
    task: str
    budget: str
    least: float = 0.0


CLAIMS = (
    *(
        Claim(of, left, right, "pacs", budget)
        for of, left, rivals in (
            (
                "TCP beats prune-then-adapt and Taylor without adaptation",
                "tcp",
                ("prune-then-adapt", "two-stage", "tcp+variant=source+weight=0"),
            ),
            (
                "ITMC beats TCP, distillation and pruning alone",
                "itmc",
                ("tcp", "uniform", "itmc+distill=false"),
            ),
            ("TANA's structure beats uniform width", "tana", ("uniform",)),
            ("the same with ten labelled images a class", "tana+labelled", ("tana+labelled+uniform",)),
        )
        for budget in ("macs=0.5", "macs=0.3")
        for right in rivals
    ),
    *(
        Claim(
            "ADMP loses at most 0.3 with 60% of the channels removed",
            "admp",
            UNPRUNED,
            task,
            "channels=0.4",
            -0.3,
        )
        for task in ("digits", "pacs")
    ),
    *(
        Claim("ADMP is at least 4 above TCP at equal parameters", "admp", "tcp", task, "params=0.4", 4.0)
        for task in ("digits", "pacs")
    ),
    *(
        Claim(
            "SWMMD adapts better than plain MMD to a part of the classes", "swmmd", right, "pacs-partial", ""
        )
        for right in ("swmmd+momentum=1", "dan")
    ),
    Claim("plain MMD suffers from absent classes", "source", "dan", "pacs-partial", ""),
    *(
        Claim("SWMMD loses at most 1 in a large cut", "swmmd", UNPRUNED, "pacs-partial", budget, -1.0)
        for budget in ("macs=0.5", "macs=0.3")
    ),
    *(
        Claim("auto loses little (ours)", "auto", UNPRUNED, task, budget, least)
        for task, budget, least in (
            ("pacs", "macs=0.5", -2.0),
            ("pacs", "macs=0.3", -6.0),
            ("cifar-jpeg", "macs=0.5", -1.5),
        )
    ),
    *(
        Claim("auto is at least 5 above the plain combinations (ours)", "auto", right, "pacs", budget, 5.0)
        for budget in ("macs=0.5", "macs=0.3")
        for right in ("prune-then-adapt", "adapt-then-prune", "two-stage")
    ),
    *(
        Claim(
            "auto closes half of the gap that distillation after a magnitude cut leaves (ours)",
            "auto",
            HALFWAY,
            "pacs",
            b,
        )
        for b in ("macs=0.5", "macs=0.3")
    ),
)


def page() -> str:
    """The whole page."""
    lines = [
        "# Claims of the papers, measured",
        "",
        "Made by `python -m benchmarks.pages` from `benchmarks/results/`. Accuracy in percent on the target, chosen",
        "without labels, mean and standard deviation of the seeds that were run; [accuracy.md](accuracy.md) has MACs,",
        "parameters, latency and work of each row. Where the paper's method section is not public, its docstring says",
        "what is reconstructed. *Equal*: no gain was claimed, and the difference is below one deviation of the seeds.",
        "",
        *_claims([*accuracy.load(), *accuracy.load(ablations.RESULTS)]),
    ]
    if rows := accuracy.load(ablations.RESULTS):
        lines += ["", "## Parts switched off", "", *ablations.table(rows).splitlines()]
    if rows := accuracy.load(dalr.RESULTS):
        lines += ["", "## Low-rank layers", "", *dalr.table(rows).splitlines()]
    return "\n".join(lines) + "\n"


def _claims(rows: Sequence[Row]) -> list[str]:
    """A line a claim; those whose rows are not there are named below."""
    lines = ["| claim | task | budget | | | difference | holds |", "|---|---|---|---|---|---|---|"]
    missing: dict[str, None] = {}
    for one in CLAIMS:
        ours, theirs = _found(rows, one, one.left), _found(rows, one, one.right)
        if not ours or not theirs:
            missing[f"{one.of} ({one.task}, {one.budget or 'adapt'}, {one.left} and {one.right})"] = None
            continue
        sides = f"{one.left} {_said(ours)}", f"{one.right} {_said(theirs)}"
        cells = [one.of, one.task, one.budget or "adapt", *sides, *verdict(ours, theirs, one.least)]
        lines.append(f"| {' | '.join(cells)} |")
    if missing:
        lines += ["", "Not measured yet:", "", *(f"- {name}" for name in missing)]
    return lines


def _found(rows: Sequence[Row], claim: Claim, name: str) -> list[float]:
    stage = "prune" if claim.budget else "adapt"
    if name == HALFWAY:
        ends = (_found(rows, claim, "distill+magnitude"), _found(rows, claim, UNPRUNED))
        return [statistics.fmean(map(statistics.fmean, ends))] if all(ends) else []
    column, name = ("before", claim.left) if name == UNPRUNED else ("chosen", name)
    wanted = (stage, claim.task, name, claim.budget)
    same = {r["key"]: r for r in rows if (r["stage"], r["task"], r["name"], r.get("budget", "")) == wanted}
    return [float(r[column]) for r in same.values() if column in r]


def verdict(ours: Sequence[float], theirs: Sequence[float], least: float) -> tuple[str, str]:
    """The difference of the means, and whether it is at least `least`: yes; equal, when one deviation is more; no."""
    gap = statistics.fmean(ours) - statistics.fmean(theirs)
    spread = max((statistics.stdev(v) for v in (ours, theirs) if len(v) > 1), default=0.0)
    word = "yes" if gap >= least else "equal" if least <= 0 and gap >= -spread else "no"
    return f"{gap:+.1f} (asked for {least:+.1f})", word


def _said(found: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"
