"""Writes docs/accuracy.md, with one plot a task, the other pages of numbers and the README's; none is typed by hand.

python -m benchmarks.pages
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import pages_claims, pages_pruning, pages_readme, pages_training, precision
from benchmarks.accuracy import Row, load
from benchmarks.cases import METHODS
from benchmarks.tasks import TASKS

DOCS = Path(__file__).parent.parent / "docs"
_WHAT = {
    "digits": "MNIST (5,000, labelled) to UCI optical digits (1,797, unlabelled), a small network trained in the run",
    "pacs": "PACS, photo (labelled) to art painting (2,048, unlabelled), EfficientNet-Lite0 at 128 px",
    "pacs-partial": "the same, and the target holds four of the seven classes",
    "cifar-jpeg": "CIFAR-10 as lossy JPEG (10,000, unlabelled), no source, ResNet-56 trained on lossless images",
}


def page(rows: Sequence[Row]) -> str:
    """The whole page; plots are drawn beside it by `plot`."""
    lines = [
        "# Accuracy",
        "",
        "Made by `python -m benchmarks.pages` from `benchmarks/results/accuracy.json`, which has each row's",
        "command. Percent, mean and standard deviation over the seeds that were run. *Before* is the network",
        "that a row began with. *Chosen* is the checkpoint that was picked without labels, on all evaluation images;",
        "in pruning validators pick for prune-then-adapt and adapt-then-prune, the others keep the last weights.",
        "*Last* and *oracle* are the last and the best of those that were validated, on at most 1,024 of the images,",
        "so they may differ from *chosen* by that alone; the oracle, or the finished network where that is better,",
        "needs labels to find and is shown for comparison only.",
        "*Regret* is the best validated less the chosen, on the same images. MACs are",
        "work; the speed-up was measured on ONNX Runtime, one CPU thread, batch 1, dense and slim interleaved,",
        "with its 99% interval. MACs, parameters and channels are shares that were kept; images are those that the",
        "slim network is trained on, source and target, after its first cut (+ those of before it, of masks, or of a",
        "teacher of its own); looks are images that it is shown for scores, agreement and batch-norm of later cuts,",
        "without training, where they were counted: a look takes about a third of the time.",
        "",
        "The settings of `auto` were found by comparing variants by labelled accuracy on these tasks (for CIFAR on",
        "half of the test images), which the rules of evaluation forbid: its rows are development results, not",
        "held-out ones. So are those with `partial`: that a target with fewer classes keeps most of the network's own",
        "batch-norm statistics, that MCC and BNM count classes, that what compares domains, SHOT, NRC and `auto` go by",
        "the label prior, that NRC keeps its classifier, and that `rank` chooses, was seen to help by the labels of",
        "pacs-partial (the prior on other parts of PACS, too), and in pruning that a taught student takes the target's",
        "statistics there, that others learn slower, and that swmmd has a teacher. That a discriminator",
        "learns ten times as fast is as published, but was looked for because of those rows, and the weight of what it",
        "teaches, a tenth of the paper's, was taken since it was better there and on digits.",
    ]
    if machines := sorted({r["machine"] for r in rows if "machine" in r}):
        lines += [
            "",
            "Machines: "
            + "; ".join(machines)
            + ". Rows start from models that were trained on the same one;",
        ]
        lines += ["minutes are longer where several rows ran at once."]
    lines += _mean_regret(rows)
    for task in TASKS:
        adapted = [r for r in rows if r["task"] == task and r["stage"] == "adapt"]
        pruned = [r for r in rows if r["task"] == task and r["stage"] == "prune"]
        if adapted or pruned:
            lines += ["", f"## {task}", "", f"{_WHAT[task][0].upper()}{_WHAT[task][1:]}."]
        if adapted:
            lines += ["", *_adapt_table(adapted)]
        if pruned:
            lines += ["", f"![accuracy against MACs]({plot_name(task)})", "", *_prune_table(pruned)]
    return "\n".join(lines) + "\n"


def plot_name(task: str) -> str:
    """File of a task's plot."""
    return f"accuracy-{task}.svg"


def _adapt_table(rows: Iterable[Row]) -> list[str]:
    lines = [
        "| objective | chosen | last | oracle | regret | seeds | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    before = [r["before"] for r in rows if "before" in r]
    if before:
        lines.append(f"| (the cloud model as it is) | {_spread(before)} | | | | | |")
    for name, group in _by(rows, "name").items():
        good = [r for r in group if "failed" not in r]
        if not good:
            lines.append(f"| {name} | failed: {group[0]['failed']} | | | | | |")
            continue
        cells = [_spread([r[k] for r in good if k in r]) for k in ("chosen", "last", "oracle", "regret")]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(good)} | {_minutes(good)} |")
    return lines


def _mean_regret(rows: Iterable[Row]) -> list[str]:
    """Over all rows of adaptation, and over those whose objective takes the target for what it is; empty without."""
    known = [r for r in rows if r["stage"] == "adapt" and "regret" in r]
    fit = [r["regret"] for r in known if _fits(r)]
    if not fit:
        return []
    mean = statistics.mean(r["regret"] for r in known)
    return [
        "",
        f"Mean regret: {statistics.mean(fit):.2f} over the {len(fit)} rows whose objective takes the target for what",
        f"it is, {mean:.2f} over all {len(known)}: where one of four classes is taken for a whole one, or by swmmd a",
        "whole one for less, the network that began is mostly the best, and no validator says so.",
    ]


def _fits(row: Row) -> bool:
    """Whether an objective that weighs classes met a target that lacks some, or one that does not met a whole one."""
    weighs = "+partial" in row["name"] or row["name"] == "swmmd"
    lacks: bool = row["task"] == "pacs-partial"
    return row["name"] == "source" or weighs == lacks


def _prune_table(rows: Iterable[Row]) -> list[str]:
    titles = [
        "budget",
        "method",
        "seeds",
        "before",
        "chosen",
        "oracle",
        "MACs",
        "parameters",
        "channels",
        "speed-up",
    ]
    titles += ["images", "looks", "minutes"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for budget, of_budget in sorted(_by(rows, "budget").items(), reverse=True):
        for name, group in _by(of_budget, "name").items():
            good = [r for r in group if "failed" not in r]
            if not good:
                lines.append(f"| {budget} | {name} | failed: {group[0]['failed']} | | | | | | | | | | |")
                continue
            shares = [
                f"{statistics.mean(r[k] / r[f'dense_{k}'] for r in good):.3f}"
                for k in ("macs", "params", "channels")
            ]
            accuracy = [_spread([r[k] for r in good if k in r]) for k in ("before", "chosen", "oracle")]
            images = f"{statistics.mean(r['images'] for r in good):,.0f}"
            if beside := statistics.mean(r.get("images_beside", 0) + r.get("images_before", 0) for r in good):
                images += f" (+ {beside:,.0f})"
            seen = [r["images_looked_at"] for r in good if "images_looked_at" in r]
            looks = f"{statistics.mean(seen):,.0f}" if seen else ""
            cells = [budget, name, str(len(good)), *accuracy, *shares, _speedups(good), images, looks]
            cells.append(_minutes(good))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _by(rows: Iterable[Row], field: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[str(row[field])].append(row)
    return dict(groups)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    more = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{more}"


def _speedups(rows: Sequence[Row]) -> str:
    """The mean, and the ends that all seeds' intervals lie between."""
    found = [r["speedup"] for r in rows if r.get("speedup")]
    if not found:
        return ""
    low, high = min(f["ci_low"] for f in found), max(f["ci_high"] for f in found)
    return f"{statistics.mean(f['speedup'] for f in found):.2f}x ({low:.2f} to {high:.2f})"


def _minutes(rows: Sequence[Row]) -> str:
    known = [r["seconds"] for r in rows if r.get("seconds")]
    return f"{statistics.mean(known) / 60:.0f}" if known else ""


def plot(task: str, rows: Sequence[Row], file: Path, names: Sequence[str]) -> None:
    """Accuracy over the MACs kept: a line a method through the means of budgets in MACs, of the seeds that all share.

    Dots are single seeds, hollow markers means of budgets of another kind; the dashed line is the adapted model before
    any cut. `names` are the methods of all tasks: a method has one colour and marker by its place there.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = task  # the same file for the same rows
    from matplotlib import pyplot as plt

    good = pages_readme.comparable([r for r in rows if "failed" not in r])
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    markers = "osv^D<>Pp*hX"
    for name, group in sorted(_by(good, "name").items(), key=lambda item: _order(item[0])):
        place = names.index(name)
        means = sorted(
            (
                statistics.mean(r["macs"] / r["dense_macs"] for r in rows),
                statistics.mean(r["chosen"] for r in rows),
                budget.startswith("macs="),
            )
            for budget, rows in _by(group, "budget").items()
        )
        (line,) = axes.plot(
            [x for x, _, by_macs in means if by_macs],
            [y for _, y, by_macs in means if by_macs],
            marker=markers[place % len(markers)],
            color=mpl.colormaps["tab20"](place % 20),
            label=name,
            linewidth=1,
        )
        for x, y, by_macs in means:
            if not by_macs:
                axes.plot(x, y, marker=line.get_marker(), color=line.get_color(), fillstyle="none")
        kept, accuracy = ([r["macs"] / r["dense_macs"] for r in group], [r["chosen"] for r in group])
        axes.scatter(kept, accuracy, s=8, color=line.get_color(), alpha=0.4)
    dense = [r["before"] for r in good if r["name"] == "auto"]
    if dense:
        axes.axhline(statistics.mean(dense), linestyle="--", color="0.4", label="adapted, not pruned")
    axes.set(xlabel="MACs kept", ylabel="accuracy, %", title=task, xlim=(0, 1.02))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, ncols=2)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def precision_page(rows: Mapping[str, Row]) -> str:
    """docs/precision.md: a line a precision of each trained network, and the largest error with random weights."""
    lines = [
        "# FP16 and INT8",
        "",
        "Made by `python -m benchmarks.pages` from `benchmarks/results/precision.json`, which",
        "`benchmarks/precision.py` wrote. Answers that changed: of FP32 against PyTorch, of the others against the",
        "FP32 file, on all images of the task. INT8 is calibrated without labels, for PACS on the paintings that",
        "it is judged on, for CIFAR on other images. FP16 on a CPU shows the rounding of stored values only.",
        "Latency of INT8: against FP32 on ONNX Runtime, one thread, interleaved.",
        "",
        "That the search aims at half the gate was decided after flips of the dense ResNet-56 on these 10,000",
        "images were seen, so its INT8 row is not held out; the networks are the checkpoints of 86.4% and 85.2%,",
        "since trained anew.",
        "",
        "| network | precision | images | answers that changed | accuracy | INT8 layers | left in float | latency |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, row in rows.items():
        if key.endswith("random"):
            continue
        if "failed" in row:
            lines.append(f"| {key} | failed: {row['failed']} | | | | | | |")
            continue
        task, which, word = key.split(" ")
        changed = f"{row['flips']} ({100 * row['flip_share']:.2f}%)"
        cells = [f"{task}, {which}", word.upper(), f"{row['n']:,}", changed, f"{100 * row['accuracy']:.1f}%"]
        if word == "int8":
            left, kept = row["left_in_float"], f"{row['quantised_layers']} of {row['layers']}"
            adds = sum("add" in name.lower() for name in left)
            cells += [kept, f"{len(left) - adds} layers, {adds} additions", row["latency"]["int8_is"]]
        lines.append(f"| {' | '.join(cells + [''] * (8 - len(cells)))} |")
    errors = {
        k.rsplit(" ", 1)[0]: r["relative"]
        for k, r in rows.items()
        if k.endswith("random") and "relative" in r
    }
    if errors:
        worst = max(errors, key=lambda k: errors[k])
        lines += [
            "",
            f"With random weights, {len(errors)} networks dense and slim: the FP32 file is off by at most",
        ]
        lines += [f"{errors[worst]:.1e} of the largest output ({worst})."]
    return "\n".join(lines) + "\n"


def _order(name: str) -> tuple[int, str]:
    first = name.partition("+")[0]
    return (METHODS.index(first) if first in METHODS else len(METHODS), name)


def main() -> int:
    """Write the page and its plots."""
    rows = load()
    (DOCS / "accuracy.md").write_text(page(rows))
    (DOCS / "precision.md").write_text(precision_page(json.loads(precision.RESULTS.read_text())))
    (DOCS / "pruning.md").write_text(pages_pruning.page())
    (DOCS / "claims.md").write_text(pages_claims.page())
    (DOCS / "training.md").write_text(pages_training.page())
    pages_readme.README.write_text(pages_readme.filled(pages_readme.README.read_text(), rows))
    cuts = [r for r in rows if r["stage"] == "prune"]
    names = sorted(_by(cuts, "name"), key=_order)
    for task, group in _by(cuts, "task").items():
        plot(task, group, DOCS / plot_name(task), names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
