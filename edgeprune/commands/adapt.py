"""`edgeprune adapt`: a cloud model and unlabelled target images -> a run whose model has learned the target.

Target labels are read for `--evaluate` alone. The checkpoint that is kept is chosen by label-free validators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune import catalog, checkpoint, images, inference, train
from edgeprune.commands import start
from edgeprune.commands.knobs import parse
from edgeprune.data import folder
from edgeprune.data.folder import Pixels
from edgeprune.errors import UsageError
from edgeprune.model import Network
from edgeprune.opening import open_network
from edgeprune.options import AdaptOptions
from edgeprune.run import Run
from edgeprune.waist import Objective, Task


@dataclass(frozen=True)
class AdaptResult:
    """What `adapt` did. Accuracies are shares in 0..1, and None unless `--evaluate` was given."""

    run: Path | None
    objective: str
    images: int
    skipped: int
    steps: int
    chosen_step: int | None
    accuracy_before: float | None
    accuracy: float | None
    next: str | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "run": str(self.run) if self.run else None, "warnings": list(self.warnings)}


@dataclass(frozen=True)
class _Images:
    target: Pixels
    source: Pixels | None
    labelled: Pixels | None


def adapt(options: AdaptOptions) -> AdaptResult:
    """Fit a model to unlabelled target images and write a run folder.

    With `dry_run` everything is checked and nothing is written. Errors: any EdgePruneError.
    """
    target = start.required(options.target, "--target", "the folder or zip of unlabelled images to adapt to")
    name = _objective(options)
    start.seed_everything(options)
    names = images.classes(images.find(options.source)) if options.source else ()
    network, fresh = open_network(options.model, options, names)
    if fresh and options.source is None:
        raise UsageError(
            f"the classifier for {len(network.classes)} classes is new, and only labelled images can train it: give --source DIR"
        )
    source_steps = options.source_steps
    if source_steps is None:
        source_steps = options.steps if fresh else 0
    if source_steps and options.source is None:
        raise UsageError(f"--source-steps {source_steps} needs --source DIR")
    data = _open_images(options, target, network)
    if options.dry_run:
        return AdaptResult(
            None, name, len(data.target), len(data.target.skipped), options.steps, None, None, None, None, ()
        )
    with Run.create(
        options.output,
        command="adapt",
        model=options.model,
        config=start.config(options),
        force=options.force,
        resume=options.resume,
    ) as run:
        return _work(options, network, data, run, (name, source_steps))


def _objective(options: AdaptOptions) -> str:
    name = options.objective
    if name == "auto":
        return "mcc" if options.source else "shot"
    needs = catalog.entry(catalog.OBJECTIVES, name, "objective").needs
    if "source" in needs and options.source is None:
        free = ", ".join(n for n, e in catalog.OBJECTIVES.items() if "source" not in e.needs)
        raise UsageError(
            f"--objective {name} learns from labelled source images: give --source DIR, or take one of {free}"
        )
    return name


def _open_images(options: AdaptOptions, target: Path, network: Network) -> _Images:
    pre, cache = network.preprocess, options.cache
    source = folder.labelled(options.source, pre, network.classes, cache) if options.source else None
    labelled = folder.labelled(options.evaluate, pre, network.classes, cache) if options.evaluate else None
    return _Images(folder.unlabelled(target, pre, cache), source, labelled)


def settings(options: Any, steps: int) -> train.Settings:
    """The training settings that the options of adapt or prune ask for."""
    return train.Settings(
        steps=steps,
        batch=options.batch,
        lr=options.lr,
        weight_decay=options.weight_decay,
        seed=options.seed,
        device=options.device,
        ema=options.ema,
        flip=options.flip,
        crop=(options.crop, 1.0) if options.crop else None,
    )


def make_objective(network: Network, name: str, words: Sequence[str]) -> Objective:
    """The objective of that name for a network, with the knobs that "name=value" words set."""
    kind: type[Objective] = catalog.load(catalog.OBJECTIVES, name, "objective")
    layer = network.module.get_submodule(network.classifier)
    features = int(getattr(layer, "in_features", None) or getattr(layer, "in_channels", 0))
    return kind(Task(features, len(network.classes)), kind.Knobs(**parse(kind.Knobs, words, name)))


def _work(
    options: AdaptOptions, network: Network, data: _Images, run: Run, how: tuple[str, int]
) -> AdaptResult:
    name, source_steps = how
    for pixels in (data.target, data.source, data.labelled):
        for lost in pixels.skipped if pixels else ():
            run.log(f"skipped, cannot be read: {lost}")
    if source_steps:
        labelled_only = make_objective(network, "source", ())
        train.fit(
            network,
            labelled_only,
            data.target,
            data.source,
            settings(options, source_steps),
            run=run,
            stage="source",
        )
    before = inference.evaluate(network, data.labelled) if data.labelled else None
    objective = make_objective(network, name, options.set)
    fit = train.fit(
        network, objective, data.target, data.source, settings(options, options.steps), run=run, stage="adapt"
    )
    after = inference.evaluate(network, data.labelled) if data.labelled else None
    result = AdaptResult(
        run.path,
        name,
        len(data.target),
        len(data.target.skipped),
        options.steps,
        fit.chosen_step,
        before,
        after,
        f"edgeprune prune {run.path} --target {options.target} --macs 0.5",
        tuple(fit.warnings),
    )
    network.history.append(start.history_entry("adapt", options, objective=name, metrics=result.to_json()))
    run.write("model.safetensors", checkpoint.dumps(network))
    run.finish(result.to_json())
    return result
