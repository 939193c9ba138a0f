"""What `edgeprune adapt` refuses or warns of before it trains: words that do not go with the model or the objective."""

from __future__ import annotations

from edgeprune import absent, inference, optimise, validate
from edgeprune.commands import start
from edgeprune.errors import ModelError
from edgeprune.model import Network
from edgeprune.options import AdaptOptions
from edgeprune.waist import Needs, Objective


def check(options: AdaptOptions, network: Network, kind: type[Objective], *, fresh: bool) -> None:
    """UsageError or ModelError for what the network cannot do; a copy is tried, so nothing has changed.

    fresh: the classifier is new.
    """
    if fresh:
        _check_classes(network)
    if options.drop_absent_classes:
        absent.check(network)
    if kind.needs.statistics and not kind.needs.train:
        validate.require_batchnorm(network)
    if kind.needs.train and kind.needs.norms_only:
        with optimise.learning(network, kind.needs):  # UsageError where nothing can learn
            pass


def unheard(options: AdaptOptions, needs: Needs, *, source_steps: int, held: bool) -> tuple[str, ...]:
    """A warning for each option that was said and that nothing looks at.

    source_steps: steps on the source alone before the objective. held: source images are kept for estimates.
    """
    name, found = options.objective, []
    taught = options.source is not None and (needs.source or needs.welcome_source)
    views = {*needs.views, *((needs.source_view,) if taught else ()), *(("train",) if source_steps else ())}
    if options.crop is not None and not (views & {"train"} and options.steps + source_steps):
        why = _views(views) if options.steps + source_steps else "it takes no steps"
        found.append(f"--crop {options.crop:g}: --objective {name} does not look at it: {why}")
    if options.source is not None and not (taught or source_steps or held):
        found.append(
            f"--source {options.source}: --objective {name} does not look at it: it learns from the target alone; "
            "--hold-out keeps some for an accuracy estimate"
        )
    usual = AdaptOptions()
    if options.select != usual.select and (needs.last or not needs.views):
        found.append(
            f"--select {options.select}: --objective {name} does not look at it: the last weights are kept"
        )
    if not (taught or source_steps) and (said := start.untaught(options)):
        found.append(said)
    if needs.averaged and not options.ema:
        found.append(
            "--ema 0: no average of the weights is kept, so the network itself makes the pseudo-labels"
        )
    for flag in ("steps", "lr", "ema", "weight_decay") if not needs.train and not source_steps else ():
        if getattr(options, flag) != getattr(usual, flag):
            found.append(
                f"--{flag.replace('_', '-')} {getattr(options, flag):g}: --objective {name} does not look at it: it "
                "takes no steps"
            )
    return tuple(found)


def _views(views: set[str]) -> str:
    return f"its views are {' and '.join(sorted(views))}, which are not cropped"


def _check_classes(network: Network) -> None:
    count, layer = len(network.classes), network.classifier
    try:
        with inference.evaluating(network.module):
            found = tuple(network.module(network.example()).shape)[1:]
    except RuntimeError:  # heads of several widths do not add up
        found = ()
    if found != (count,):
        raise ModelError(
            f"{network.spec}: more than the layer {layer} makes the logits, so they cannot become {count}; leave "
            "--classes out, or take a model with one classifier"
        )
