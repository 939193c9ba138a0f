"""docs/training.md from results: how fast the training loop is, beside other ways of taking the same steps.

Written by `python -m benchmarks.pages`.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks import training

_OTHERS = {
    "memory": "the same steps on tensors in memory",
    "plain": "a plain loop over DataLoaders of image files",
    "bf16": "`--amp bf16`",
    "contiguous": "contiguous memory, in place of channels-last",
    "compile": "`--compile`",
}
_WHAT = {"strong": ", `fixmatch` in place of `mcc`"}


def page() -> str:
    """The whole page."""
    kept = json.loads(training.RESULTS.read_text())
    lines = [
        "# Speed of the training loop",
        "",
        "Made by `python -m benchmarks.pages` from `benchmarks/results/training.json`, which `python -m",
        "benchmarks.training` writes. Images a second of `mcc` with source, both domains counted, loop and other way",
        "taking turns in one process; the ratio is the loop's speed over the other's, with its 99% interval. A ratio",
        "of at least 0.9 beside tensors in memory means that reading images is not what training waits for.",
        "",
        f"Machine: {kept['cpu']['name']}, {kept['cpu']['usable']} cores, torch {kept['packages']['torch']}.",
        "",
        "| task | batch | threads | beside | loop | other | loop / other |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(kept["rows"], key=lambda r: (r["task"], list(training.ROWS).index(r["row"]))):
        lines += [_line(row, other) for other in row["loop_vs"]]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any], other: str) -> str:
    speed, ratio = row["images_per_s"], row["loop_vs"][other]
    cells = [
        row["task"],
        row["batch"],
        row["threads"],
        f"{_OTHERS[other]}{_WHAT.get(row['row'], '')}",
        f"{speed['loop']:.0f}",
        f"{speed[other]:.0f}",
        f"{ratio['speedup']:.2f} ({ratio['ci_low']:.2f} to {ratio['ci_high']:.2f})",
    ]
    return f"| {' | '.join(str(cell) for cell in cells)} |"
