"""docs/claims.md from results: what the papers claim and what our rows say, the ablations, the low-rank layers.

Written by `python -m benchmarks.pages`; a claim whose rows are not there says so, a part without rows is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import ablations, accuracy, cases, dalr, pages_dalr
from benchmarks.accuracy import Row

UNPRUNED = "its own network before the cut"
TANA_UNIFORM = (
    "tana+statistic=given+rank=local+score=magnitude"  # as many cuts, so the structure alone differs
)
ITMC_UNIFORM = (
    "itmc+cuts=1+score=given+rank=local+score=magnitude"  # its teacher and losses after one uniform cut
)
TCP_WITHOUT = (
    "tcp+variant=source+weight=0"  # as many images as with it, so twice the steps: all are the source's
)
TCP_WITHOUT_STEPS = f"{TCP_WITHOUT}+recover=x0.5"  # as many steps, as the paper's epochs are counted
TWINS = tuple(c.name.removesuffix("+partial") for c in cases.adapting((0,)) if c.name.endswith("+partial"))
STRONG = ("distill+magnitude", "distill+taylor")  # adapt, cut, distil: the better of those that were run
HALFWAY = f"halfway from {' or '.join(STRONG)} to the network before the cut"


class Margin(NamedTuple):
    """How far one row is above another at a budget."""

    ours: str
    theirs: str
    budget: str

    def __str__(self) -> str:
        return f"{self.ours} over {self.theirs} at {self.budget}"


class Claim(NamedTuple):
    """`left` is at least `least` points above `right` on a task at a budget; each is a row's name, or a Margin with a
    budget of its own; `right` may be UNPRUNED or HALFWAY.
    """

    of: str
    left: str | Margin
    right: str | Margin
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
                ("prune-then-adapt", "two-stage", TCP_WITHOUT, TCP_WITHOUT_STEPS),
            ),
            (
                "ITMC beats TCP, distillation and pruning alone",
                "itmc",
                ("tcp", ITMC_UNIFORM, "itmc+distill=false+source=1", "uniform"),
            ),
            ("ITMC beats one cut and plain distillation (ours)", "itmc", STRONG),
            ("TANA's structure beats uniform width", "tana", ("uniform", TANA_UNIFORM)),
            ("the same with ten labelled images a class", "tana+labelled", ("tana+labelled+uniform",)),
        )
        for budget in ("macs=0.5", "macs=0.3")
        for right in rivals
    ),
    *(
        Claim(
            "TCP's margin grows with the cut",
            Margin("tcp", right, "macs=0.3"),
            Margin("tcp", right, "macs=0.5"),
            "pacs",
            "macs=0.3",
        )
        for right in ("prune-then-adapt", "two-stage", TCP_WITHOUT, TCP_WITHOUT_STEPS)
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
        Claim("ADMP is at least 4 above TCP at equal parameters", "admp", "tcp", task, budget, 4.0)
        for task, budget in (("digits", "params=0.4"), ("digits", "params=0.1"), ("pacs", "params=0.4"))
    ),
    *(
        Claim(
            "SWMMD adapts better than plain MMD to a part of the classes", "swmmd", right, "pacs-partial", ""
        )
        for right in ("swmmd+momentum=1", "dan")
    ),
    Claim("plain MMD suffers from absent classes", "source", "dan", "pacs-partial", ""),
    *(
        Claim("partial=true beats its plain twin (ours)", f"{n}+partial", n, "pacs-partial", "")
        for n in TWINS
    ),
    *(
        Claim("no partial method falls below the source alone (ours)", name, "source", "pacs-partial", "")
        for name in (*(f"{n}+partial" for n in TWINS), "swmmd")
    ),
    *(
        Claim("SWMMD loses at most 1 in a large cut", "swmmd", UNPRUNED, "pacs-partial", budget, -1.0)
        for budget in ("macs=0.5", "macs=0.3")
    ),
    *(
        Claim("auto loses no more than we allow (ours)", "auto", UNPRUNED, task, budget, least)
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
            "auto closes half of the gap that distillation after one cut leaves (ours)",
            "auto",
            HALFWAY,
            "pacs",
            b,
        )
        for b in ("macs=0.5", "macs=0.3")
    ),
    *(
        Claim("auto is better than distillation after one cut (ours)", "auto", right, "pacs", b)
        for b in ("macs=0.5", "macs=0.3")
        for right in STRONG
    ),
)


# What the rows above do not hold, in words; their numbers stand in the tables.
TRIED = (
    "- TCP at 0.3 is below itself without adaptation with one adapted network (seed 0), and 3 to 6 points above with",
    "  three others (seeds 2, 3 and 4), so the difference is within what networks differ by; its margin over that",
    "  grows with the cut with one of the four. Its margin over two-stage shrinks: that loses 3 points from half to",
    "  0.3 where TCP loses 9: why was not found out. Tried with the first were the released code's score",
    "  (`variant=code`), the paper's removal of the lowest scores whatever they cost (`rank=threshold`), MMD in",
    "  training alone (`variant=source`), and the comparison at as many steps. From the first cut on TCP takes about",
    "  200 steps of 32 images of each domain here; the paper takes 5 epochs after each of its many cuts and 20 at the",
    "  end.",
    "- ITMC: its first form (`source=1`, `score=student`: the student learns on the source too, and the first order",
    "  of its whole loss ranks) was below distillation after one uniform cut, so the reconstruction was changed; and",
    "  what follows the last cut was in four turns (`after=4`), each with learning rates that fall to 0, and is one",
    "  now. Those with `after=4` are among the parts switched off. Tried with four turns at 0.3: a teacher that",
    "  stays as it is, one that goes on by mcc. Of the first form, pruning alone and one uniform cut were run with",
    "  four turns only.",
    "- SWMMD at 0.3 was 6 points below the dense network while it went on after the last removal as before it",
    "  (`tune=both`): label-free Taylor in place of its score is no better, so it was not which channels go, but that",
    "  it learns at 3e-4 with batch-norm statistics that stand still, as larger steps ruin such a network. Now it",
    "  learns from the dense network alone there; at half, with one network, that is 1.5 points worse (81.2, 82.8).",
    "  While pruning, soft weights are not shown to help: plain MMD (`momentum=1`) in their place, from the same",
    "  adapted networks (three), is level or better at both budgets, since the teacher holds the classes. What they",
    "  are worth shows where there is none: as an objective of `adapt`, and against TCP, whose plain MMD ends with",
    "  one class for all images (34.4).",
    "- ADMP at 0.3 of the MACs, which no claim is about: with one network it is better without the soft mask, and when",
    "  distillation alone follows the cut (`tune=distill`).",
    "- ADMP on digits at 0.3 of the MACs: without masks, and by chance without masks, it is not worse (one seed):",
    "  there the masks are worth nothing that can be seen.",
    "- ADMP on digits: TCP is within 4 points of the dense network at 40% of the parameters, so nothing can be 4 above",
    "  it; at a tenth of them, where it is not, the claim holds.",
    "- `auto` against distillation after one cut by Taylor: it is the same but for the score and the error inside the",
    "  network, and the recovery makes up for either. With three cuts, as it had before, it is level on PACS and worse",
    "  on CIFAR-JPEG at 0.3 (among the parts switched off): a later cut is ranked in a network that has only begun to",
    "  recover.",
)


def page() -> str:
    """The whole page."""
    lines = [
        "# Claims of the papers, measured",
        "",
        "Made by `python -m benchmarks.pages` from `benchmarks/results/`. Accuracy in percent on the target, chosen",
        "without labels, mean and standard deviation of the seeds that both sides were run with;",
        "[accuracy.md](accuracy.md) has MACs, parameters, latency and work of each row (admp also trains beside its",
        "masks before the cut, itmc a teacher beside the student, and both before the first cut). Where the paper's",
        "method section is not public, its docstring says what is reconstructed. *Equal*: the difference is below one",
        "deviation of the seeds (of their differences, where both sides are one network before and after); of one seed",
        "there is none, so a single pair of rows says little.",
        "",
        "Work is counted from the first cut on, as the task says. prune-then-adapt and two-stage begin with the cloud",
        "model and adapt within that work; the others begin with an adapted network, `auto`'s (swmmd on pacs-partial",
        "with its own, and with the dense network as a teacher, which the paper is not known to have: among the parts",
        "switched off is `distill=false`, without it), whose adaptation is not counted.",
        "TCP without adaptation draws no target image, so it takes twice TCP's steps for as many images;",
        "`recover=x0.5` takes as many steps.",
        "",
        *_claims([*accuracy.load(), *accuracy.load(ablations.RESULTS)]),
    ]
    lines += ["", "What was tried where a claim does not hold:", "", *TRIED]
    if rows := accuracy.load(ablations.RESULTS):
        known = {r["key"]: r for r in (*accuracy.load(), *rows)}
        lines += ["", "## Parts switched off", "", *ablations.table(list(known.values())).splitlines()]
    if rows := accuracy.load(dalr.RESULTS):
        lines += [
            "",
            "## Low-rank layers",
            "",
            *pages_dalr.table(rows).splitlines(),
            "",
            *pages_dalr.verdicts(rows),
        ]
    return "\n".join(lines) + "\n"


def _claims(rows: Sequence[Row]) -> list[str]:
    """A line a claim, of the seeds that both sides have; those whose rows are not there are named below."""
    lines = [
        "| claim | task | budget | seeds | left | right | difference | holds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    missing: dict[str, None] = {}
    for one in CLAIMS:
        left, right = _found(rows, one, one.left), _found(rows, one, one.right)
        both = sorted(set(left) & set(right))
        if not both:
            missing[f"{one.of} ({one.task}, {one.budget or 'adapt'}, {one.left} and {one.right})"] = None
            continue
        ours, theirs = ([side[seed] for seed in both] for side in (left, right))
        sides = f"{one.left} {_said(ours)}", f"{one.right} {_said(theirs)}"
        cells = [
            one.of,
            one.task,
            one.budget or "adapt",
            str(len(both)),
            *sides,
            *verdict(ours, theirs, one.least, paired=one.right == UNPRUNED),
        ]
        if one.right == HALFWAY and statistics.fmean(theirs) >= statistics.fmean(
            _found(rows, one, UNPRUNED)[seed] for seed in both
        ):
            cells[-1] = "no gap to close"
        lines.append(f"| {' | '.join(cells)} |")
    if missing:
        lines += ["", "Not measured yet:", "", *(f"- {name}" for name in missing)]
    return lines


def _found(rows: Sequence[Row], claim: Claim, name: str | Margin) -> dict[int, float]:
    """Accuracy, or a margin, in percent by seed."""
    stage = "prune" if claim.budget else "adapt"
    if isinstance(name, Margin):
        there = claim._replace(budget=name.budget)
        high, low = (_found(rows, there, side) for side in (name.ours, name.theirs))
        return {seed: high[seed] - low[seed] for seed in high.keys() & low.keys()}
    if name == HALFWAY:
        high, *lows = (_found(rows, claim, end) for end in (UNPRUNED, *STRONG))
        low = {seed: max(one[seed] for one in lows if seed in one) for seed in set().union(*lows)}
        return {seed: (low[seed] + high[seed]) / 2 for seed in low.keys() & high.keys()}
    column, name = ("before", str(claim.left)) if name == UNPRUNED else ("chosen", name)
    wanted = (stage, claim.task, name, claim.budget)
    same = [r for r in rows if (r["stage"], r["task"], r["name"], r.get("budget", "")) == wanted]
    return {r["seed"]: float(r[column]) for r in same if column in r}


def verdict(
    ours: Sequence[float], theirs: Sequence[float], least: float, *, paired: bool = False
) -> tuple[str, str]:
    """The difference of the means, and whether a claim holds, where one deviation of the seeds is no difference.

    A gain (least 0) must be more than that, else it is "equal" or "no"; a loss may be that much. One seed has none.
    paired: both sides come from one network each, so the deviation is that of their differences.
    """
    gap = statistics.fmean(ours) - statistics.fmean(theirs)
    each = [[a - b for a, b in zip(ours, theirs, strict=True)]] if paired else [ours, theirs]
    spread = max((statistics.stdev(v) for v in each if len(v) > 1), default=0.0)
    if least == 0:
        word = "yes" if gap > spread else "equal" if gap >= -spread else "no"
    else:
        word = "yes" if gap >= least else "equal" if least < 0 and gap >= -spread else "no"
    return f"{gap:+.1f} (at least {least:+.1f})", word


def _said(found: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"
