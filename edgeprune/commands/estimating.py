"""What adapting says of accuracy without target labels, and what the cloud exports for it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune import artifact, catalog, estimate, inference, select
from edgeprune.data.pixels import Pixels, split
from edgeprune.errors import DataError, OutputExists, UsageError
from edgeprune.estimate import Statistics
from edgeprune.model import Network
from edgeprune.options import AdaptOptions

HELD_OUT = 0.1
ONE_CLASS = 0.95  # of the answers: hardly any target is so
HALF = 0.5
FEW_IMAGES = 20  # say little of which classes are there: of one that is, more than ten have to be sure


def check_words(options: AdaptOptions) -> None:
    """UsageError or OutputExists when the options on selection and statistics do not make sense together."""
    name = select.chooser_of(options.select)
    needy = f"--select {name}" if name in select.NEED_SOURCE else "--hold-out" if options.hold_out else ""
    needy = needy or ("--export-stats" if options.export_stats else "")
    if needy and options.source is None:
        raise UsageError(f"{needy} needs labelled source images: give --source DIR")
    if options.export_stats and options.target is not None:
        raise UsageError(
            "--export-stats describes a model as it is on labelled images: leave --target out, give --source DIR"
        )
    if options.export_stats and options.export_stats.exists() and not options.force:
        raise OutputExists(f"{options.export_stats} exists; --force replaces it")


def hold_out(options: AdaptOptions, source: Pixels | None) -> tuple[Pixels | None, Pixels | None]:
    """Source images to train on, and those kept from training, class by class, for estimates and validators.

    UsageError when they are too few for the validator that --select names.
    """
    share = _held_share(options.hold_out, options.select)
    if source is None or not share:
        return source, None
    taught, held = split(source, share, options.seed)
    fewest = estimate.FEWEST if options.select == "dev" else 1
    if len(held) < fewest:
        needy = f"--select {options.select}" if options.select in select.NEED_SOURCE else "--hold-out"
        raise UsageError(
            f"{needy} needs at least {fewest} held-out source images, and of {len(source)} in "
            f"{options.source} --hold-out {share:g} keeps {len(held)} (one of each class stays in training): "
            f"give about {math.ceil(fewest / share)} images, or a larger --hold-out"
        )
    return taught, held


def known(options: AdaptOptions, network: Network) -> Statistics | None:
    """The statistics of --stats; DataError when they are of a model with other classes."""
    if options.stats is None:
        return None
    found = estimate.read(options.stats)
    if found.classes != network.classes:
        raise DataError(
            f"--stats {options.stats}: of a model with {len(found.classes)} classes ({', '.join(found.classes[:4])}"
            f" ...), this one has {len(network.classes)} ({', '.join(network.classes[:4])} ...); "
            "export them from the model that is adapted"
        )
    return found


def of_another(options: AdaptOptions, network: Network) -> list[str]:
    """A warning when the statistics of --stats were measured with other weights."""
    found = known(options, network)
    other = found is not None and found.model not in ("", fingerprint(network.module))
    return [
        f"--stats {options.stats}: measured with other weights than this model has, so the estimate may be far off: "
        "export them from the model that is adapted"
    ] * other


def fingerprint(module: nn.Module) -> str:
    """16 hex digits that tell weights and statistics of one network from those of another."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def before(network: Network, held: Pixels | None) -> Statistics | None:
    """Statistics of the network as it is before adapting, on held-out source images; None for too few."""
    return measure(network, held) if held is not None and len(held) >= estimate.FEWEST else None


def of(
    network: Network,
    held: Pixels | None,
    statistics: Statistics | None,
    logits: tuple[Tensor, Tensor],
    seed: int,
    kept: Tensor | None = None,
) -> dict[str, Any]:
    """The estimate for a result: from held-out source images, else from statistics of before, else agreement alone.

    statistics: of the network before adapting, from --stats or `before`. logits: (M, K) of target images before
    adapting, and after it. kept (L,): the classes that are left, when the second are (M, L) of those; `held` holds no
    others.
    """
    was, now = (np.asarray(z.double().numpy()) for z in logits)
    wide = now
    if kept is not None:  # answers are compared as classes of before
        wide = np.full_like(was, -np.inf)
        wide[:, kept.numpy()] = now
    if statistics is None:
        return estimate.agreement(was, wide).to_json()
    bounds = estimate.adapted(statistics, was, wide, seed)
    if held is None or len(held) < estimate.FEWEST:
        return bounds.to_json()
    return estimate.doubted(estimate.estimate(measure(network, held), now, seed), bounds).to_json()


def after_cutting(history: Sequence[Mapping[str, Any]], share: float, images: int) -> dict[str, Any]:
    """The estimate for a pruned network that gives `share` of the dense one's answers, whose history says the rest."""
    said = (entry.get("metrics", {}).get("estimate") for entry in reversed(history))
    return estimate.carried(next((e for e in said if e), None), share, images).to_json()


def doubts(options: AdaptOptions, network: Network, logits: Tensor, held: Pixels | None) -> tuple[str, ...]:
    """What should be known before the estimate is believed, or the classes that are called present.

    logits (M, K): of target images. held: source images kept from training.
    """
    said = []
    if held is not None and (where := _learned_before(options, network)):
        said.append(
            f"an earlier run of this model learned from images of {where} that are held out now, so they are not new "
            "to it, and the estimate may be far too high: hold them out from the first run on, with the same --seed"
        )
    counts = np.bincount(logits.argmax(1).numpy(), minlength=logits.shape[1])
    if logits.shape[1] > 1 and len(logits) >= FEW_IMAGES and counts.max() >= ONE_CLASS * counts.sum():
        name = network.classes[int(counts.argmax())]
        said.append(
            f"{counts.max()} of {counts.sum()} target images are called {name!r}: unless that is so, the model has "
            "collapsed, and its estimate and its present classes mean nothing"
        )
    if options.drop_absent_classes and len(logits) < FEW_IMAGES:
        said.append(
            f"{len(logits)} target images are too few to say which classes are absent: give at least {FEW_IMAGES}"
        )
    return tuple(said)


def scattered(network: Network, was: Tensor, now: Tensor, *, can: bool = True) -> tuple[str, ...]:
    """A warning where nearly all answers (N, K) were of one class before adapting, and hardly half of them are now.

    can: whether the objective has the knob that helps.
    Most objectives want answers of all classes. A network that knew nothing of the target may begin the same way.
    """
    before, after = (z.argmax(1) for z in (was, now))
    label = int(before.mode().values)
    shares = [float((answers == label).double().mean()) for answers in (before, after)]
    if len(was) < FEW_IMAGES or shares[0] < ONE_CLASS or shares[1] > HALF:
        return ()
    return (
        f"before adapting {shares[0]:.0%} of the target images were called {network.classes[label]!r}, now "
        f"{shares[1]:.0%}: if the target does hold that class alone, adapting has spread its answers over others; "
        + ("" if can else "an objective that learns from the source with ")
        + "--set partial=true keeps them",
    )


def _held_share(asked: float, chooser: str) -> float:
    return asked or (HELD_OUT if chooser in select.NEED_SOURCE else 0.0)


def _learned_before(options: AdaptOptions, network: Network) -> Path | None:
    """The source, if an earlier command of the network's history learned from what is held out of it now."""
    now = _held_share(options.hold_out, options.select)
    for entry in network.history:
        was = entry.get("options", {})
        if not (options.source and was.get("source")) or not _takes_source(entry["command"], was):
            continue
        shares = [_held_share(was.get("hold_out", 0.0), was.get("select", "")), now]
        if Path(was["source"]).resolve() == options.source.resolve() and (
            shares[0] != shares[1] or was.get("seed") != options.seed or network.dropped
        ):
            return options.source
    return None


def _takes_source(command: str, was: Mapping[str, Any]) -> bool:
    """Whether a command with these options learned from the source that it was given."""
    objective = catalog.OBJECTIVES.get(was.get("objective", ""))
    learned = was.get("objective") == "auto" or (objective is not None and "source" in objective.needs)
    method = catalog.METHODS.get(was.get("method", "")) if command == "prune" else None
    return learned or bool(was.get("source_steps")) or (method is not None and "source" in method.needs)


def measure(network: Network, labelled: Pixels) -> Statistics:
    """Statistics of a network on labelled images."""
    assert labelled.labels is not None
    logits = inference.predict(network, labelled)[1].double().numpy()
    found = estimate.measure(logits, labelled.labels.numpy(), network.classes)
    return replace(found, model=fingerprint(network.module))


def export(file: Path, network: Network, labelled: Pixels) -> Statistics:
    """Write the statistics file of a network on labelled validation images."""
    found = measure(network, labelled)
    artifact.write_atomically(file, (json.dumps(found.to_json()) + "\n").encode())
    return found
