"""`edgeprune adapt`: a cloud model and unlabelled target images -> a run whose model has learned the target.

Target labels are read for `--evaluate` alone. The checkpoint that is kept is chosen by label-free validators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune import checkpoint, images, inference, train
from edgeprune.commands import start
from edgeprune.commands.knobs import parse
from edgeprune.data import folder
from edgeprune.data.folder import Pixels
from edgeprune.errors import UsageError
from edgeprune.methods import learning
from edgeprune.model import Network
from edgeprune.opening import open_network
from edgeprune.options import AdaptOptions
from edgeprune.prune import macs
from edgeprune.run import Run
from edgeprune.waist import Objective


@dataclass(frozen=True)
class AdaptResult:
    """What `adapt` did. Accuracies are shares in 0..1, and None unless `--evaluate` was given.

    macs, params: of the network on one image. chosen_step: whose weights were kept; None in a dry run.
    """

    run: Path | None
    objective: str
    images: int
    skipped: int
    steps: int
    macs: int
    params: int
    chosen_step: int | None = None
    accuracy_before: float | None = None
    accuracy: float | None = None
    next: str | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "run": str(self.run) if self.run else None, "warnings": list(self.warnings)}


@dataclass(frozen=True)
class _Images:
    target: Pixels
    source: Pixels | None
    labelled: Pixels | None


@dataclass(frozen=True)
class _Learning:
    """What is learned: the objective with its knobs, and how many steps go to the source alone before."""

    name: str
    kind: type[Objective]
    knobs: Mapping[str, Any]
    source_steps: int


def adapt(options: AdaptOptions) -> AdaptResult:
    """Fit a model to unlabelled target images and write a run folder.

    With `dry_run` everything is checked and nothing is written. Errors: any EdgePruneError.
    """
    target = start.required(options.target, "--target", "the folder or zip of unlabelled images to adapt to")
    start.check_numbers(options)
    name = options.objective
    kind = learning.kind_of(name, source=options.source is not None)
    knobs = parse(kind.Knobs, options.set, name)
    start.seed_everything(options)
    names = images.classes(images.find(options.source)) if options.source else ()
    network, fresh = open_network(options.model, options, names)
    how = _Learning(name, kind, knobs, _source_steps(options, network, fresh))
    data = _open_images(options, target, network)
    if options.dry_run:
        return _result(options, how, network, data, None)
    with Run.create(
        options.output,
        command="adapt",
        model=options.model,
        config=start.config(options),
        force=options.force,
        resume=options.resume,
    ) as run:
        return _work(options, network, data, run, how)


def _source_steps(options: AdaptOptions, network: Network, fresh: bool) -> int:
    if fresh and options.source is None:
        raise UsageError(
            f"the classifier for {len(network.classes)} classes is new, and only labelled images can train it: "
            "give --source DIR"
        )
    if options.source_steps is None:
        return options.steps if fresh else 0
    if options.source_steps and options.source is None:
        raise UsageError(f"--source-steps {options.source_steps} needs --source DIR")
    return options.source_steps


def _open_images(options: AdaptOptions, target: Path, network: Network) -> _Images:
    pre, cache = network.preprocess, options.cache
    source = folder.labelled(options.source, pre, network.classes, cache) if options.source else None
    labelled = folder.labelled(options.evaluate, pre, network.classes, cache) if options.evaluate else None
    return _Images(folder.unlabelled(target, pre, cache), source, labelled)


def _work(options: AdaptOptions, network: Network, data: _Images, run: Run, how: _Learning) -> AdaptResult:
    start.log_skipped(run, data.target, data.source, data.labelled)
    if how.source_steps:
        plain = learning.make(learning.kind_of("source", source=True), network)
        few = learning.settings(options, how.source_steps, validations=6)
        train.fit(network, plain, data.target, data.source, few, run=run, stage="source")
    before = inference.evaluate(network, data.labelled) if data.labelled else None
    objective = learning.make(how.kind, network, how.knobs)
    settings = learning.settings(options, options.steps, validations=6)
    fit = train.fit(
        network, objective, data.target, data.source, settings, run=run, stage="adapt", watch=data.labelled
    )
    after = inference.evaluate(network, data.labelled) if data.labelled else None
    result = _result(options, how, network, data, run.path, fit, (before, after))
    network.history.append(
        start.history_entry("adapt", options, objective=how.name, metrics=result.to_json())
    )
    run.write("model.safetensors", checkpoint.dumps(network))
    run.finish(result.to_json())
    return result


def _result(
    options: AdaptOptions,
    how: _Learning,
    network: Network,
    data: _Images,
    run: Path | None,
    fit: train.Fit | None = None,
    accuracies: tuple[float | None, float | None] = (None, None),
) -> AdaptResult:
    cost, params = macs.measure(network.module, network.example())
    facts = (how.name, len(data.target), len(data.target.skipped), options.steps, cost, params)
    if fit is None:
        return AdaptResult(run, *facts)
    following = start.words("edgeprune", "prune", run, "--target", options.target, "--macs", "0.5")
    return AdaptResult(run, *facts, fit.chosen_step, *accuracies, following, tuple(fit.warnings))
