"""docs/pruning.md from results: recovery against Torch-Pruning, latency budgets, the planner's constants.

Written by `python -m benchmarks.pages`; a part without rows is left out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import budgets, planner, recovery, scores

Row = dict[str, Any]
SAME = 0.003  # of the answers


def page() -> str:
    """The whole page."""
    lines = ["# Pruning, measured", "", "Made by `python -m benchmarks.pages` from `benchmarks/results/`."]
    for title, part, file in (
        ("Recovery without labels", _recovery, recovery.RESULTS),
        ("Latency budgets", _budgets, budgets.RESULTS),
        ("Scores, right after the cut", _scores, scores.RESULTS),
        ("The planner's constants", _planner, planner.RESULTS),
    ):
        if file.exists():
            rows: list[Row] = json.loads(Path(file).read_text())["rows"]
            lines += ["", f"## {title}", "", *part(rows)]
    return "\n".join(lines) + "\n"


def _recovery(rows: Sequence[Row]) -> list[str]:
    """A line a plan, a column a point."""
    points = ("cut", "statistics", "1 passes", "3 passes")
    names = list(dict.fromkeys(r["key"].partition(", ")[0] for r in rows))
    found = {r["key"]: f"{r['accuracy']:.1f}" for r in rows}
    first = rows[0]
    lines = [
        "ResNet-56 at 2.1 times fewer MACs, on 10,000 lossy CIFAR-10 images without labels; accuracy in percent on",
        f"the test images, {first['dense']:.1f} before the cut, one seed. *ours* and *torch-pruning* are one cut each,",
        "by their own choice (ours: `--score taylor`), recovered by the same command (plain distillation);",
        "Torch-Pruning chooses among inner layers of blocks by group magnitude, since its graph gets the shortcuts",
        "wrong. *auto* is the method as users run it.",
        "",
        "| | MACs kept | after the cut | batch-norm statistics | 1 pass | 3 passes |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(names, key=["ours", "torch-pruning", "auto"].index):
        kept = next(r["macs_kept"] for r in rows if r["key"].startswith(f"{name}, "))
        cells = " | ".join(found.get(f"{name}, {point}", "") for point in points)
        lines.append(f"| {name} | {kept:.3f} | {cells} |")
    accuracy = {r["key"]: r["accuracy"] for r in rows}
    ahead = [accuracy[f"ours, {p}"] - accuracy[f"torch-pruning, {p}"] for p in points]
    aims = zip(("cut", "statistics", "1 pass", "3 passes"), ahead, (3, 3, 3, 0), strict=True)
    said = [f"{point} {gap:+.2f} (aim: at least {least:+})" for point, gap, least in aims]
    return [*lines, "", f"Ours less Torch-Pruning's: {', '.join(said)}."]


def _budgets(rows: Sequence[Row]) -> list[str]:
    """A line a network and share, the three ways beside each other."""
    made = {(r["network"], r["share"], r["way"]): r for r in rows}
    lines = [
        "Each network cut to a share of its own latency (ONNX Runtime, one thread, batch 1), three ways: as",
        "`--latency` does, by a MACs budget, and by uniform width, each corrected until it is measured at that",
        "latency, anew for every column (so `--latency` may show less than its neighbour). It makes a plan by the",
        "layer table and the knapsack, one by a MACs budget (M) and one of uniform width (U), and takes the one that",
        "agrees most with the dense network, here on the same images. Agreement on 2,048 paintings, after batch-norm",
        "statistics were taken anew and nothing else; in brackets the latency as a share of what was asked for.",
        "",
        "| network | latency | `--latency` | MACs budget | uniform width |",
        "|---|---|---|---|---|",
    ]
    for network, share in sorted({(r["network"], r["share"]) for r in rows}, key=lambda k: (k[0], -k[1])):
        cells = []
        for way in budgets.WAYS:
            row = made.get((network, share, way))
            if row is None or "failed" in row:
                cells.append("not reached" if row else "not run")
            else:
                second = (
                    {"macs": " M", "uniform": " U"}.get(row.get("taken", ""), "") if way == "latency" else ""
                )
                cells.append(f"{row['agreement']:.3f}{second} ({row['of_requested']:.2f})")
        lines.append(f"| {network} | {share:g}x | {' | '.join(cells)} |")
    return [*lines, "", *(_above(made, way) for way in ("macs", "uniform"))]


def _above(made: Mapping[tuple[str, float, str], Row], way: str) -> str:
    """How often `--latency` keeps more answers than another way; differences below SAME are none."""
    gaps = [
        row["agreement"] - made[network, share, way]["agreement"]
        for (network, share, mine), row in made.items()
        if mine == "latency" and "agreement" in row and "agreement" in made.get((network, share, way), {})
    ]
    more, less = sum(g > SAME for g in gaps), sum(g < -SAME for g in gaps)
    other = {"macs": "a MACs budget", "uniform": "uniform width"}[way]
    return f"- against {other}: above in {more} of {len(gaps)}, below in {less} (the aim: above in all)"


def _scores(rows: Sequence[Row]) -> list[str]:
    """A line a task and criterion, a column a share of the MACs."""
    found = {r["key"]: r for r in rows}
    lines = [
        "Agreement with the dense network on 1,024 target images after one cut to a share of the MACs and new",
        "batch-norm statistics, nothing trained. Seconds: of scoring, on a busy machine.",
        "",
        f"| task | score | {' | '.join(f'{share:g}' for share in scores.SHARES)} | seconds |",
        "|---|---|" + "---|" * (len(scores.SHARES) + 1),
    ]
    for task, name in dict.fromkeys(tuple(key.split("/")[:2]) for key in found):
        some = [found.get(f"{task}/{name}/{share:g}") for share in scores.SHARES]
        cells = [f"{one['agreement']:.3f}" if one else "" for one in some]
        seconds = next(f"{one['scoring_seconds']:.0f}" for one in some if one)
        lines.append(f"| {task} | {name} | {' | '.join(cells)} | {seconds} |")
    return lines


def _planner(rows: Sequence[Row]) -> list[str]:
    """The median over networks for each value of each constant."""
    lines = [
        "Speed-up over the reduction of MACs at half of the MACs, median over networks with random weights (1: time",
        "falls as MACs do).",
        "",
        "| constant | value | networks | median | least |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        constant, _, value = row["key"].rpartition("/")[2].partition("=")
        groups.setdefault((constant, int(value)), []).append(row["share"])
    for (constant, value), shares in sorted(groups.items()):
        lines.append(
            f"| {constant} | {value} | {len(shares)} | {statistics.median(shares):.3f} | {min(shares):.3f} |"
        )
    return lines
