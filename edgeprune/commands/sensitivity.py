"""`edgeprune inspect --sensitivity`: how far a network's answers move when each coupling alone is cut. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune import catalog, progress
from edgeprune.artifact import write_atomically
from edgeprune.commands import start
from edgeprune.data import folder
from edgeprune.data.batches import plain
from edgeprune.device_options import InspectOptions
from edgeprune.errors import OutputExists, UsageError, missing_package
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions
from edgeprune.prune import graph, score
from edgeprune.prune.sensitivity import Sensitivity, sensitivity

BATCH = 32
FORMATS = (".svg", ".png", ".pdf")
_DRAWN = 12  # couplings that get a colour and a name, the most sensitive first

Rows = tuple[Mapping[str, Any], ...]


def rows(options: InspectOptions) -> tuple[str, Rows]:
    """The network's spec and one row for each coupling and cut, in the order of execution; draws `options.plot`.

    divergence: mean KL(dense || cut) in nats an image. UsageError without images or for a score that needs labels.
    """
    target = start.required(options.target, "--target", "the unlabelled images that --sensitivity looks at")
    if options.images < 1:
        raise UsageError(f"--images {options.images}: expected 1 or more")
    entry = catalog.entry(catalog.SCORES, options.score, "score")
    if "source" in entry.needs:
        raise UsageError(
            f"--score {options.score} needs labels; --sensitivity looks at unlabelled images alone"
        )
    _check_plot(options)
    words = ModelOptions(
        weights=options.weights, map_by_order=options.map_by_order, size=options.size, trust=options.trust
    )
    network, _ = open_network(options.file, words)
    images = folder.unlabelled(target, network.preprocess, None)
    few = images.spread(options.images)
    batches = [x for _, x, _ in plain(few, network.preprocess, BATCH)]
    found = graph.find(network.module, network.example())
    scores = score.of(options.score, network.module, found, network.preprocess, few)
    with progress.bar("sensitivity", total=sum(1 for _ in found)) as tick:
        measured = sensitivity(network.module, found, scores, batches, tick=tick)
    if options.plot:
        draw(measured, options.plot, network.spec)
    return network.spec, tuple(_row(one) for one in measured)


def _row(one: Sensitivity) -> dict[str, Any]:
    return {
        "layer": one.root,
        "width": one.width,
        "kept": one.kept,
        "cut": round(one.cut, 4),
        "divergence": one.divergence,
        "agreement": one.agreement,
    }


def _check_plot(options: InspectOptions) -> None:
    if options.plot is None:
        return
    if options.plot.suffix not in FORMATS:
        raise UsageError(f"--plot {options.plot}: expected a name that ends in {', '.join(FORMATS)}")
    if options.plot.exists() and not options.force:
        raise OutputExists(f"{options.plot} exists; --force replaces it")
    _library()


def _library() -> Any:
    try:
        import matplotlib.figure
    except ImportError as err:
        raise missing_package("matplotlib", "report", "drawing a plot") from err
    return matplotlib.figure


def draw(measured: Sequence[Sensitivity], path: Path, title: str) -> None:
    """Divergence against the share that was cut, one line a coupling; the most sensitive have names."""
    import io

    curves: dict[str, list[Sensitivity]] = {}
    for one in measured:
        curves.setdefault(one.root, []).append(one)
    worst = sorted(curves, key=lambda root: -max(one.divergence for one in curves[root]))
    figure = _library().Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    marks = "osv^D<>pP*Xh"
    for root in reversed(worst):
        points = sorted((one.cut, one.divergence) for one in curves[root])
        xs, ys = zip((0.0, 0.0), *points, strict=True)
        named = root in worst[:_DRAWN]
        style = (
            {"marker": marks[worst.index(root)], "label": root} if named else {"color": "0.8", "zorder": 1}
        )
        axes.plot(xs, ys, linewidth=1.2 if named else 0.8, **style)
    axes.set(
        xlabel="share of the channels cut", ylabel="KL(dense || cut), nats an image", xlim=(0, 1), title=title
    )
    axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize="small", title="most sensitive first")
    held = io.BytesIO()
    figure.savefig(held, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    write_atomically(path, held.getvalue())
