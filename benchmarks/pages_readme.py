"""The README's tables of real tasks, from results: what stands between two marks is replaced.

Written by `python -m benchmarks.pages`. A table is between `<!-- numbers: TASK -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import Row

README = Path(__file__).parent.parent / "README.md"
_MARK = re.compile(r"(<!-- numbers: (?P<task>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CALLED = {
    "pacs": ("trained on photos", "accuracy on the paintings"),
    "cifar-jpeg": ("as it came from the cloud", "accuracy on the JPEG test images"),
}


def filled(text: str, rows: Sequence[Row]) -> str:
    """The text with the table of every mark made anew; ValueError for a mark of a task without a row of `auto`."""
    return _MARK.sub(lambda found: f"{found[1]}{table(found['task'], rows)}\n{found[3]}", text)


def table(task: str, rows: Sequence[Row]) -> str:
    """Markdown: the network as it came, adapted, and at each budget, by `auto`."""
    mine = [r for r in rows if (r["task"], r["name"]) == (task, "auto") and "failed" not in r]
    adapted = [r for r in mine if r["stage"] == "adapt"]
    cuts = [r for r in mine if r["stage"] == "prune"]
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
        fast = group[0]["speedup"]
        cells = (
            f"adapted and pruned (`auto --{word} {share}`{_of(group)})",
            _percent([r["chosen"] for r in group]),
            _size(statistics.mean(r["macs"] for r in group)),
            _size(statistics.mean(r["params"] for r in group)),
            f"{fast['speedup']:.2f}x faster (99%: {fast['ci_low']:.2f} to {fast['ci_high']:.2f})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(rows: Sequence[Row]) -> str:
    return f", {len(rows)} seeds" if len(rows) > 1 else ", one seed"


def _percent(found: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(found):.1f}" if len(set(found)) > 1 else ""
    return f"{statistics.mean(found):.1f}%{spread}"


def _size(count: float) -> str:
    return f"{count / 1e6:.3g} M"
