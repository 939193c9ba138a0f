"""`edgeprune adapt`: a cloud model and unlabelled target images -> a run whose model has learned the target.

Target labels are read for `--evaluate` alone. The checkpoint that is kept is chosen by label-free validators.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeprune import absent, checkpoint, follower, images, inference, processes, select, train, validate
from edgeprune.commands import adaptable, estimating, start
from edgeprune.commands.knobs import parse
from edgeprune.data import folder
from edgeprune.data.folder import Pixels
from edgeprune.errors import UsageError
from edgeprune.estimate import Statistics
from edgeprune.methods import learning
from edgeprune.model import Network
from edgeprune.opening import before_fine_tuning, open_network
from edgeprune.options import AdaptOptions
from edgeprune.prune import macs
from edgeprune.run import Run
from edgeprune.waist import Objective


@dataclass(frozen=True)
class AdaptResult:
    """What `adapt` did. Accuracies are shares in 0..1, and None unless `--evaluate` was given.

    macs, params: of the network on one image. plan: of a dry run, how it would train. chosen_step: whose weights were
    kept; None in a dry run. chosen_by: the validator that chose it, None where the last weights are kept. estimate: of
    accuracy without labels, see edgeprune.estimate. present_classes: which the target seems to hold, when partial.
    """

    run: Path | None
    objective: str
    images: int
    skipped: int
    steps: int
    macs: int
    params: int
    plan: Mapping[str, Any] | None = None
    chosen_step: int | None = None
    chosen_by: str | None = None
    accuracy_before: float | None = None
    accuracy: float | None = None
    next: str | None = None
    warnings: tuple[str, ...] = ()
    estimate: Mapping[str, Any] | None = None
    present_classes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self),
            "run": str(self.run) if self.run else None,
            "warnings": list(self.warnings),
            "present_classes": list(self.present_classes),
        }


@dataclass(frozen=True)
class _Images:
    target: Pixels
    source: Pixels | None
    labelled: Pixels | None
    held: Pixels | None
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Learning:
    """What is learned: the objective with its knobs, and how many steps go to the source alone before.

    older: the network before it was fine-tuned, when that is at hand; see Task.beside.
    """

    name: str
    kind: type[Objective]
    knobs: Mapping[str, Any]
    source_steps: int
    older: Network | None = None


def adapt(options: AdaptOptions) -> AdaptResult:
    """Fit a model to unlabelled target images and write a run folder.

    With `dry_run` everything is checked and nothing is written. Errors: any EdgePruneError.
    """
    estimating.check_words(options)
    start.check_numbers(options)
    learning.check_words(options)
    if options.export_stats is not None and options.source is not None:
        return _export(options, options.export_stats, options.source)
    target = start.required(options.target, "--target", "the folder or zip of unlabelled images to adapt to")
    name = options.objective
    kind = learning.kind_of(name, source=options.source is not None)
    if options.pretrained is not None and not kind.needs.welcome_beside:
        raise UsageError(f"--pretrained is of no use to --objective {name}; auto takes it")
    knobs = parse(kind.Knobs, options.set, name)
    if options.drop_absent_classes and "partial" in {f.name for f in fields(kind.Knobs)}:
        knobs = {"partial": True, **knobs}  # what pulls answers onto all classes would keep the absent ones
    kind.Knobs(**knobs)  # refuses values that make no sense
    start.training(options)
    names = images.classes(images.find(options.source)) if options.source else ()
    network, fresh = open_network(options.model, options, names)
    adaptable.check(options, network, kind, fresh=fresh)
    how = _Learning(
        name, kind, knobs, _source_steps(options, network, fresh), _older(options, network, fresh)
    )
    statistics = estimating.known(options, network)
    data = _open_images(options, target, network)
    if options.dry_run:
        return _result(options, how, network, data, None)
    with follower.create(
        options.output,
        device=options.device,
        command="adapt",
        model=options.model,
        config=start.config(options),
        force=options.force,
        resume=options.resume,
    ) as run:
        return _work(options, network, data, run, how, statistics)


def _export(options: AdaptOptions, file: Path, source: Path) -> AdaptResult:
    """Statistics of the model as it is on labelled images; nothing is trained."""
    network, fresh = open_network(options.model, options)
    if fresh:
        raise UsageError("--export-stats: the classifier is new and untrained; give a model with its classes")
    labelled = folder.labelled(source, network.preprocess, network.classes, options.cache)
    found = (
        estimating.measure(network, labelled)
        if options.dry_run
        else estimating.export(file, network, labelled)
    )
    cost, params = macs.measure(network.module, network.example())
    facts = (None, "none", len(labelled), len(labelled.skipped), 0, cost, params)
    following = start.words("edgeprune", "adapt", options.model, "--target", "DIR", "--stats", file)
    return AdaptResult(*facts, accuracy=found.accuracy, next=following)


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


def _older(options: AdaptOptions, network: Network, fresh: bool) -> Network | None:
    """What `--pretrained` names, or else the network itself when only its classifier is new."""
    if options.pretrained is not None:
        return before_fine_tuning(network, options.pretrained, options)
    if fresh and options.weights != "none":
        return replace(network, module=copy.deepcopy(network.module), history=[])
    return None


def _open_images(options: AdaptOptions, target: Path, network: Network) -> _Images:
    pre, cache = network.preprocess, options.cache
    known = (pre, network.classes, cache)
    source = folder.labelled(options.source, *known, dropped=network.dropped) if options.source else None
    labelled = start.evaluated(options.evaluate, network, cache) if options.evaluate else None
    source, held = estimating.hold_out(options, source)
    said = (
        *start.without_dropped(network, options.source),
        *start.lacking(network, source),
        *start.never_right(labelled),
        *estimating.of_another(options, network),
    )
    return _Images(folder.unlabelled(target, pre, cache), source, labelled, held, said)


def _work(
    options: AdaptOptions,
    network: Network,
    data: _Images,
    run: Run,
    how: _Learning,
    statistics: Statistics | None,
) -> AdaptResult:
    start.log_skipped(run, data.target, data.source, data.labelled)
    for warning in _unheard(options, how, data):
        run.log(warning)
    probe = data.target.spread(validate.IMAGES)
    came = inference.predict(network, probe)[1] if statistics else None
    if how.source_steps:
        _learn_source(options, network, data, run, how.source_steps)
    before = inference.evaluate(network, data.labelled) if data.labelled else None
    statistics = statistics or estimating.before(network, data.held)
    was = came if came is not None else inference.predict(network, probe)[1]
    objective, settings = _objective(options, network, data, run, how)
    images, held = (data.target, data.source), data.held
    fit = train.fit(
        network, objective, *images, settings, run=run, stage="adapt", watch=data.labelled, held=held
    )
    there, kept = _present(options, network, data, run, how)
    labelled, held = _of_kept(data, there, kept)
    logits = (was, inference.predict(network, probe)[1])
    said = estimating.of(network, held, statistics, logits, options.seed, kept)
    after = inference.evaluate(network, labelled) if labelled else None
    result = _result(options, how, network, data, run.path, fit, (before, after))
    doubts = (*start.begun_anew(options, run), *estimating.doubts(options, network, logits[1], held))
    if kept is None and not objective.partial:
        can = "partial" in {f.name for f in fields(how.kind.Knobs)}
        doubts += estimating.scattered(network, *logits, can=can)
    for doubt in doubts:
        run.log(doubt)
    result = replace(result, estimate=said, present_classes=there, warnings=(*result.warnings, *doubts))
    partial = objective.partial and kept is None  # of what is left, the target lacks none
    facts = {"objective": how.name, "partial": partial, "metrics": result.to_json()}
    network.history.append(start.history_entry("adapt", replace(options, lr=settings.lr), **facts))
    run.write("model.safetensors", checkpoint.dumps(network))
    run.finish(result.to_json())
    return result


def _learn_source(options: AdaptOptions, network: Network, data: _Images, run: Run, steps: int) -> None:
    """Train on the source alone, before any adaptation."""
    plain = learning.make(learning.kind_of("source", source=True), network)
    few = learning.settings(options, steps, validations=6)
    train.fit(network, plain, data.target, data.source, few, run=run, stage="source")


def _of_kept(
    data: _Images, there: tuple[str, ...], kept: Tensor | None
) -> tuple[Pixels | None, Pixels | None]:
    """Labelled target and held-out source images as a network that `kept` some classes has them; all where None."""
    labelled, held = data.labelled, data.held
    if kept is None:
        return labelled, held
    relabelled = absent.relabelled(labelled, there, kept) if labelled else None
    return relabelled, absent.without(held, there, kept) if held else None


def _objective(
    options: AdaptOptions, network: Network, data: _Images, run: Run, how: _Learning
) -> tuple[Objective, train.Settings]:
    """What is learned, knowing what can be known of network and target, and how; the log says which rate was taken."""
    images = data.target, data.source
    objective = learning.knowing(how.kind, network, images, how.knobs, how.older)
    gentle = objective.needs.gentle
    settings = learning.settings(options, options.steps, validations=6, gentle=gentle)
    if gentle:
        settled = objective.task.settled
        run.log(f"the shift looks small: neighbours are called alike (kappa {settled or 0:.2f})")
    run.log(f"learning rate {settings.lr:g}, views {objective.needs.views}")
    return objective, settings


def _present(
    options: AdaptOptions, network: Network, data: _Images, run: Run, how: _Learning
) -> tuple[tuple[str, ...], Tensor | None]:
    """Classes that a partial target seems to hold, and which of its own (L,) the network kept; None: all."""
    if not (options.drop_absent_classes or how.kind.partial or how.knobs.get("partial")):
        return (), None
    keep = absent.present(inference.predict(network, data.target)[1])
    classes, rows = network.classes, keep.nonzero().flatten()
    names = tuple(classes[i] for i in rows.tolist())
    run.log(f"the target seems to hold {len(names)} of {len(classes)} classes: {', '.join(names)}")
    if not options.drop_absent_classes or len(names) in (
        1,
        len(classes),
    ):  # of one class, nothing is left to say
        return names, None
    absent.drop(network, keep)
    network.history.append({"command": "drop-absent-classes", "kept": list(names), "of": list(classes)})
    return names, rows


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
    steps = options.steps if how.kind.needs.train else 0
    facts = (how.name, len(data.target), len(data.target.skipped), steps, cost, params)
    unheard = _unheard(options, how, data)
    if fit is None:
        return AdaptResult(run, *facts, plan=_plan(options, how, data), warnings=unheard)
    more = (*start.trusted(network), *(() if options.flip else ("--no-flip",)))
    following = start.words("edgeprune", "prune", run, "--target", options.target, "--macs", "0.5", *more)
    before, after = accuracies
    return AdaptResult(
        run,
        *facts,
        chosen_step=fit.chosen_step,
        chosen_by=fit.chosen_by or None,
        accuracy_before=before,
        accuracy=after,
        next=following,
        warnings=(*unheard, *fit.warnings),
    )


def _plan(options: AdaptOptions, how: _Learning, data: _Images) -> dict[str, Any]:
    """What a dry run says of training; where an objective looks at the target first, it may choose otherwise."""
    needs, source = how.kind.needs, data.source
    partial = how.kind.partial or bool(how.knobs.get("partial"))
    trains = needs.train or how.source_steps > 0
    taught = needs.source or needs.welcome_source or how.source_steps > 0
    chooses = needs.train and needs.views and not needs.last
    return {
        "source_steps": how.source_steps,
        "batch": options.batch,
        "learning_rate": (options.lr or learning.LR) if trains else None,
        "learns_from_source": len(source) if source is not None and taught else 0,
        "held_out": len(data.held) if data.held is not None else 0,
        "views": ", ".join(needs.views),
        "partial": partial,
        "chooses": select.chooser_of(options.select, partial=partial) if chooses else None,
        "device": str(processes.fabric(options.device, learning.AMP[options.amp]).device),
    }


def _unheard(options: AdaptOptions, how: _Learning, data: _Images) -> tuple[str, ...]:
    needs = how.kind.needs
    needs = replace(needs, averaged=how.knobs.get("teacher") == "average")
    found = adaptable.unheard(options, needs, source_steps=how.source_steps, held=data.held is not None)
    sets = {"--target": data.target, "--source": data.source, "--evaluate": data.labelled}
    lost = (w for flag, pixels in sets.items() if pixels is not None for w in start.unread(pixels, flag))
    return (*found, *data.said, *lost)
