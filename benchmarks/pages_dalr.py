"""The low-rank layers of benchmarks.dalr as Markdown: accuracy by form and rank, and what each rank is worth to SVD."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.dalr import FORMS, GROUPS, IMAGENET, Row

CLAIMED = 4.0  # times fewer parameters than truncated SVD, at equal accuracy
MEASURED = {IMAGENET.name: "answers that agree with the whole layer's, in %"}
LOSS = 1.0  # points below the unchanged network that count as equal accuracy


def table(rows: Sequence[Row]) -> str:
    """Markdown: for each task and layers, accuracy by form and rank, and the parameters that equal accuracy takes."""
    lines = []
    for group in GROUPS:
        here = [r for r in rows if (r["task"], r["layers"]) == (group.task, group.name)]
        if not here:
            continue
        ranks = [rank for rank in group.ranks if any(r["rank"] == rank for r in here)]
        whole = statistics.fmean(r["whole"] for r in here)
        lines += [
            f"\n{group.task}, {group.name}: {MEASURED.get(group.task, 'accuracy in %')}, {whole:.1f} unchanged\n",
            "| form | "
            + " | ".join(f"rank {rank:g}" for rank in ranks)
            + f" | parameters within {LOSS:g} point |",
            "|---" * (len(ranks) + 2) + "|",
        ]
        for form in FORMS:
            mine = [r for r in here if r["form"] == form]
            if mine:
                cells = (_mean([r["accuracy"] for r in mine if r["rank"] == rank]) for rank in ranks)
                lines.append(f"| {form} | " + " | ".join(cells) + f" | {_needed(mine)} |")
    return "\n".join(lines).strip()


def _mean(found: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}" if found else ""


def needed(rows: Sequence[Row]) -> int | None:
    """Parameters of the smallest rank from which on, over all seeds, accuracy stays within LOSS; None if none does."""
    fewest = None
    for rank in sorted({r["rank"] for r in rows}, reverse=True):
        same = [r for r in rows if r["rank"] == rank]
        if statistics.fmean(r["whole"] - r["accuracy"] for r in same) > LOSS:
            break
        fewest = int(same[0]["params"])
    return fewest


def _needed(rows: Sequence[Row]) -> str:
    found = needed(rows)
    return "more than any here" if found is None else f"{found:,} of {rows[0]['dense_params']:,}"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown: the paper's claim on each layer group that both forms were measured on."""
    lines = [
        f"The claim is that truncated SVD needs at least {CLAIMED:g} times the parameters, in a fully connected layer.",
        f"First: for an accuracy within {LOSS:g} point of the unchanged network. Then, for ranks that are not so near:",
        "for the accuracy that `dalr` has at a rank, the first rank here at which SVD has it. The network of `fc` was",
        "trained on ten classes from the start, so a few more directions than classes hold all that its layers do,",
        "whichever form finds them; the 1,000 classes of `imagenet` are many more than the paintings need.",
        "",
    ]
    for group in GROUPS:
        here = [r for r in rows if (r["task"], r["layers"]) == (group.task, group.name)]
        sides = {form: [r for r in here if r["form"] == form] for form in ("svd", "dalr", "centred")}
        for form in ("dalr", "centred") if sides["svd"] else ():
            if sides[form]:
                said = _within(sides["svd"], sides[form], form)
                each = _each(sides["svd"], sides[form])
                lines.append(f"- {group.task}, {group.name}: {said}" + (f"; {each}" if each else ""))
    return lines


def _within(svd: Sequence[Row], mine: Sequence[Row], form: str) -> str:
    theirs, ours = needed(svd), needed(mine)
    if ours is None:
        return f"within {LOSS:g} point {form} needs more than any rank here"
    if theirs is None:  # then the largest rank bounds the ratio from below
        ratio = max(r["params"] for r in svd) / ours
        return f"more than {ratio:.1f} times with {form}: {'yes' if ratio >= CLAIMED else 'open'}"
    return f"{theirs / ours:.1f} times with {form}: {'yes' if theirs / ours >= CLAIMED else 'no'}"


def _each(svd: Sequence[Row], mine: Sequence[Row]) -> str:
    """At each rank of `mine` that is well below the unchanged network: what SVD takes for as much."""
    found = []
    for rank in sorted({r["rank"] for r in mine}):
        ours = [r for r in mine if r["rank"] == rank]
        reached = statistics.fmean(r["accuracy"] for r in ours)
        theirs = as_good(svd, reached)
        if ours[0]["whole"] - reached > LOSS and rank >= 1:
            times = theirs / ours[0]["params"] if theirs else None
            found.append(f"{rank:g}: " + (f"{times:.1f} times" if times else "more than any rank here"))
    return f"at rank {', '.join(found)}" if found else ""


def as_good(rows: Sequence[Row], accuracy: float) -> int | None:
    """Parameters of the smallest rank that has this accuracy, in percent, over all seeds; None if none has."""
    for rank in sorted({r["rank"] for r in rows}):
        same = [r for r in rows if r["rank"] == rank]
        if statistics.fmean(r["accuracy"] for r in same) >= accuracy:
            return int(same[0]["params"])
    return None
