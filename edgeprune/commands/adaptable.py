"""What `edgeprune adapt` refuses or warns of before it trains: words that do not go with the model or the objective."""

from __future__ import annotations

from edgeprune import absent, inference, validate
from edgeprune.errors import ModelError
from edgeprune.model import Network
from edgeprune.options import AdaptOptions
from edgeprune.waist import Objective


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
