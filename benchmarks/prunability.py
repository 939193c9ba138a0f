"""docs/prunability.md from the rows of benchmarks/coverage.py: what could be pruned, and how that compares.

Written by `python -m benchmarks.coverage --docs`.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.coverage import KEPT, Point, load
from benchmarks.families import TIMM, TORCHVISION

Row = dict[str, Any]
DOCS = Path(__file__).parent.parent / "docs" / "prunability.md"


def compared(kept: float) -> str | None:
    """One line of the table that compares both tools on the networks both complete; None without such rows."""
    points = [Point(kept, t) for t in (False, True)]
    sides = [p.completed() for p in points]
    both = sorted(sides[0].keys() & sides[1].keys())
    if not both:
        return None
    shares = [[r["speedup"] * r["macs"] / r["dense_macs"] for r in (side[n] for n in both)] for side in sides]
    ours, theirs = (statistics.median(s) for s in shares)
    tried = [len(load(p.file)) for p in points]
    counts = " | ".join(f"{len(side)} of {n}" for side, n in zip(sides, tried, strict=True))
    return f"| {kept:g} | {counts} | {len(both)} | {ours:.3f} | {theirs:.3f} |"


def _machines(*shares: float) -> str:
    """Which processors timed how many networks at each share of the MACs."""
    said = []
    for kept in shares:
        counts = Counter(str(r["cpu"]) for r in load(Point(kept).file))
        said.append(f"at {kept:g} " + " and ".join(f"{n} on {cpu}" for cpu, n in counts.most_common()))
    return "; ".join(said)


def write() -> None:
    """Write the page: totals, one line a network, then both tools side by side."""
    rows = load(Point(KEPT).file)
    lines = [
        "# Which networks can be pruned",
        "",
        "Made by `python -m benchmarks.coverage --docs`: random weights, default size, cut to half of the MACs by",
        "magnitude, then one training step, reload in a fresh process (bit-equal), ONNX at batch 1 and 3, parity, and",
        "latency on ONNX Runtime (one thread, batch 1, dense and slim interleaved). MACs are work, not speed.",
        "Planning is in seconds of one core.",
        "",
        *_totals(rows),
        "",
        "| network | MACs kept | speed-up | planning, s | frozen couplings |",
        "|---|---|---|---|---|",
        *(_line(r) for r in sorted(rows, key=lambda r: str(r["network"]))),
        "",
        *_frozen(rows),
    ]
    told = [line for kept in (KEPT, 0.27) if (line := compared(kept)) is not None]
    if told:
        lines += [
            "",
            "## Against Torch-Pruning alone",
            "",
            "`BasePruner` with its own defaults, group magnitude, widths of 8, in steps until the MACs are down, on",
            "the same networks and by the same steps; but for the reload, since it cannot read a cut network back",
            "without pickle. Speed-up over the reduction of MACs is 1 where time falls as MACs do.",
            "",
            "| MACs kept | ours complete | theirs | both | speed-up over MACs reduction, median | theirs |",
            "|---|---|---|---|---|---|",
            *told,
            "",
            f"Both tools of a network were timed on the same machine: {_machines(KEPT, 0.27)}.",
        ]
    DOCS.write_text("\n".join(lines) + "\n")


def _totals(rows: list[Row]) -> list[str]:
    """What came of the families of each library, and how long planning took."""
    lines = ["| | tried | complete every step | within 2% of the budget |", "|---|---|---|---|"]
    for name, all_ in (("torchvision", TORCHVISION), ("timm", TIMM)):
        mine = [r for r in rows if r["network"].startswith(name)]
        good = [r for r in mine if not r["failed"]]
        near = [r for r in good if KEPT * 0.98 <= r["macs"] / r["dense_macs"] <= KEPT * 1.0001]
        lines.append(f"| {name} | {len(mine)} of {len(all_)} | {len(good)} | {len(near)} |")
    planning = sorted(r["plan_s"] for r in rows if not r["failed"])
    tenth = planning[math.ceil(0.9 * len(planning)) - 1]
    return [*lines, "", f"Planning: nine in ten within {tenth:.0f} s, the longest {planning[-1]:.0f} s."]


def _line(row: Row) -> str:
    if row["failed"]:
        return f"| {row['network']} | failed at {row['failed']} | | | |"
    frozen = f"{len(_reasons(row))} of {row['couplings']}"
    share, fast = row["macs"] / row["dense_macs"], f"{row['speedup']:.2f}x"
    return f"| {row['network']} | {share:.3f} | {fast} | {row['plan_s']} | {frozen} |"


def _reasons(row: Row) -> list[str]:
    """Why couplings of a network are frozen, apart from its output."""
    return [why for why in row.get("frozen", {}).values() if why != "the network's output"]


def _frozen(rows: list[Row]) -> list[str]:
    """The networks with frozen couplings, and the reasons; blocks that differ by number alone are one line."""
    lines = []
    for row in sorted(rows, key=lambda r: str(r["network"])):
        alike = (re.sub(r"(?<=\.)\d+(?=[.:])", "\\*", why) for why in _reasons(row))
        for why, count in Counter(alike).most_common():
            lines.append(f"| {row['network']} | {count} | {why.replace('|', '/')} |")
    if not lines:
        return []
    return ["## What is frozen, and why", "", "| network | couplings | reason |", "|---|---|---|", *lines]
