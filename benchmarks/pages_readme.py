"""The README's tables of real tasks, from results: what stands between two marks is replaced.

Written by `python -m benchmarks.pages`. A table is between `<!-- numbers: TASK -->` and `<!-- end -->`;
`methods of TASK` in place of it has all pruning methods.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import Row

README = Path(__file__).parent.parent / "README.md"
_MARK = re.compile(
    r"(<!-- numbers: (?P<all>methods of )?(?P<task>[\w-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)
SAME = 0.02  # as edgeprune.bench.compare: a ratio so near 1 is no change
_BUDGETS = ("macs=0.5", "macs=0.3")
_CALLED = {
    "pacs": ("trained on photos", "accuracy on the paintings"),
    "cifar-jpeg": ("as it came from the cloud", "accuracy on the JPEG test images"),
}


def filled(text: str, rows: Sequence[Row]) -> str:
    """The text with the table of every mark made anew; ValueError for a mark of a task without a row of `auto`."""

    def made(found: re.Match[str]) -> str:
        of = methods if found["all"] else table
        return f"{found[1]}{of(found['task'], rows)}\n{found['end']}"

    return _MARK.sub(made, text)


def table(task: str, rows: Sequence[Row]) -> str:
    """Markdown: the network as it came, adapted, and at each budget, by `auto`."""
    mine = [r for r in rows if (r["task"], r["name"]) == (task, "auto") and "failed" not in r]
    cuts = [r for r in mine if r["stage"] == "prune"]
    seeds = {r["seed"] for r in cuts}  # the networks that were cut, so that the lines can be compared
    adapted = [r for r in mine if r["stage"] == "adapt" and r["seed"] in seeds]
    if not adapted or not cuts:
        raise ValueError(f"{task}: the README shows rows of `auto` that are not there")
    came, accuracy = _CALLED[task]
    dense = f"{_size(cuts[0]['dense_macs'])} | {_size(cuts[0]['dense_params'])}"
    steps = f"`auto`, {adapted[0]['steps']} steps{_of(adapted)}"
    lines = [
        f"| network | {accuracy} | MACs | parameters | speed-up, ONNX Runtime, one thread |",
        "|---|---|---|---|---|",
        f"| {came} | {_percent([r['before'] for r in adapted])} | {dense} | |",
        f"| adapted ({steps}) | {_percent([r['chosen'] for r in adapted])} | {dense} | |",
    ]
    for budget in sorted({r["budget"] for r in cuts}, reverse=True):
        group = [r for r in cuts if r["budget"] == budget]
        word, share = budget.split("=")
        cells = (
            f"adapted and pruned (`auto --{word} {share}`{_of(group)})",
            _percent([r["chosen"] for r in group]),
            _size(statistics.mean(r["macs"] for r in group)),
            _size(statistics.mean(r["params"] for r in group)),
            _fast(group),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def methods(task: str, rows: Sequence[Row]) -> str:
    """Markdown: every method's accuracy and speed-up at both budgets in MACs, the best first.

    Of the seeds that most of them have, since networks of other seeds begin elsewhere: those say from where.
    """
    pruned = [r for r in rows if (r["stage"], r["task"]) == ("prune", task)]
    mine = comparable([r for r in pruned if "failed" not in r])
    unmet = {(r["name"], r["budget"]) for r in pruned if r.get("failed", "").startswith("exit 3")}
    shared = seeds_of_most(mine)
    cells: dict[str, list[str]] = {}
    order: dict[str, float] = {}
    for name in {r["name"] for r in mine if r["budget"] in _BUDGETS}:
        groups = [[r for r in mine if (r["name"], r["budget"]) == (name, b)] for b in _BUDGETS]
        empty = ["budget not met" if (name, b) in unmet else "" for b in _BUDGETS]
        cells[name] = [
            f"{_reached(g, shared)}, {_faster(g)}" if g else e for g, e in zip(groups, empty, strict=True)
        ]
        order[name] = max((statistics.mean(r["chosen"] for r in g) for g in groups if g), default=0.0)
    if not cells:
        raise ValueError(f"{task}: the README shows pruning rows that are not there")
    dense = {r["seed"]: r["before"] for r in mine if r["name"] == "auto" and r["seed"] in shared}
    lines = [
        "| method | at half of the MACs | at 0.3 |",
        "|---|---|---|",
        f"| none: the adapted network | {_percent(list(dense.values()))} | |",
    ]
    lines += [f"| `{n}` | {' | '.join(cells[n])} |" for n in sorted(cells, key=lambda n: (-order[n], n))]
    return "\n".join(lines)


def comparable(rows: Sequence[Row]) -> list[Row]:
    """Rows of the seeds that most methods were run with at a budget in MACs; of a method without them, all of its."""
    shared = seeds_of_most(rows)
    there = {(r["name"], r["budget"]) for r in rows if r["seed"] in shared}
    return [r for r in rows if r["seed"] in shared or (r["name"], r["budget"]) not in there]


def seeds_of_most(rows: Sequence[Row]) -> set[int]:
    """The seed that the largest number of methods and budgets in MACs were run with, and others that all those were."""
    there: dict[int, set[tuple[str, str]]] = {}
    for r in rows:
        if r["budget"] in _BUDGETS:
            there.setdefault(r["seed"], set()).add((r["name"], r["budget"]))
    most = max(sorted(there), key=lambda seed: len(there[seed]), default=None)
    return set() if most is None else {seed for seed in there if there[seed] >= there[most]}


def _reached(rows: Sequence[Row], shared: set[int]) -> str:
    """Accuracy; where the seeds are others, that of the network before the cut, too."""
    found = _percent([r["chosen"] for r in rows])
    others = not {r["seed"] for r in rows} & shared
    return f"{found} of {_percent([r['before'] for r in rows])}" if others else found


def _faster(rows: Sequence[Row]) -> str:
    found = [r["speedup"]["speedup"] for r in rows if r.get("speedup")]  # none where the export failed
    return _times(statistics.mean(found)) if found else "not exported"


def _times(ratio: float) -> str:
    if abs(ratio - 1) <= SAME:
        return "as fast"
    return f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"


def _fast(rows: Sequence[Row]) -> str:
    """With the interval; of several seeds, from the lowest end to the highest."""
    each = [r["speedup"] for r in rows if r.get("speedup")]
    if not each:
        return _faster(rows)
    low, high = min(f["ci_low"] for f in each), max(f["ci_high"] for f in each)
    ends = (f"{low:.2f}", f"{high:.2f}") if low >= 1 else (_times(low), _times(high))
    return f"{_faster(rows)} (99%: {' to '.join(ends)})"


def _of(rows: Sequence[Row]) -> str:
    return f", {len(rows)} seeds" if len(rows) > 1 else ", one seed"


def _percent(found: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(found):.1f}" if len(set(found)) > 1 else ""
    return f"{statistics.mean(found):.1f}%{spread}"


def _size(count: float) -> str:
    return f"{count / 1e6:.3g} M"
