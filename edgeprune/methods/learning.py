"""From a name, knobs and options to what the training loop takes: shared by adapting and by recovering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

import torch
from torch import Tensor

from edgeprune import catalog, inference, processes, validate
from edgeprune.data.pixels import Pixels
from edgeprune.errors import UsageError, nearest
from edgeprune.model import Network
from edgeprune.objectives import propagation
from edgeprune.optimise import Decay, Optimizer
from edgeprune.options import AdaptOptions, PruneOptions
from edgeprune.train import Settings
from edgeprune.waist import Objective, Task

LR, GENTLE_LR = 5e-4, 1e-4  # of adapting
RECOVERY_LR, GENTLE_RECOVERY_LR = 1e-3, 3e-4
AMP = {"none": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}  # as lightning-fabric calls them


def kind_of(name: str, *, source: bool) -> type[Objective]:
    """The class of the objective `name`; UsageError when there is none, or when it needs a source that is not given."""
    needs = catalog.entry(catalog.OBJECTIVES, name, "objective").needs
    if "source" in needs and not source:
        free = ", ".join(n for n, e in catalog.OBJECTIVES.items() if "source" not in e.needs)
        raise UsageError(
            f"--objective {name} learns from labelled source images: give --source DIR, or take one of {free}"
        )
    found: type[Objective] = catalog.load(catalog.OBJECTIVES, name, "objective")
    return found


def task(network: Network, beside: Tensor | None = None, settled: float | None = None) -> Task:
    """What an objective may know of the network as it stands; `beside` and `settled` as in Task."""
    layer = network.module.get_submodule(network.classifier)
    features = int(getattr(layer, "in_features", 0) or getattr(layer, "in_channels", 0))
    return Task(features, len(network.classes), beside, settled)


def make(
    kind: type[Objective],
    network: Network,
    knobs: Mapping[str, Any] | None = None,
    beside: Tensor | None = None,
    settled: float | None = None,
) -> Objective:
    """An objective for the network as it stands; `beside` and `settled` as in Task.

    What it draws (a discriminator's weights, random maps) follows from the seed that torch was last given, that of the
    run and its last step, not from what was drawn since; so a run that resumes has the same.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        return kind(task(network, beside, settled), kind.Knobs(**knobs) if knobs else None)


def knowing(
    kind: type[Objective],
    network: Network,
    images: tuple[Pixels, Pixels | None],
    knobs: Mapping[str, Any] | None = None,
    older: Network | None = None,
) -> Objective:
    """An objective that knows what it wants to of the network as it stands and of `images` (target, source).

    older: the network before it was fine-tuned, where that is known.
    """
    target, source = images
    beside, settled = None, None
    if older is not None and kind.needs.welcome_beside:
        beside = inference.predict(older, target)[0]
    if kind.needs.welcome_settled and source is None:
        settled = propagation.settled(*inference.predict(network, target.spread(validate.IMAGES)))
    return make(kind, network, knobs, beside, settled)


def check_words(options: AdaptOptions | PruneOptions) -> None:
    """UsageError for a word of the training options that is none of the choices; errors of `processes.require`."""
    for flag, word, choices in (
        ("--optimizer", options.optimizer, get_args(Optimizer)),
        ("--decay", options.decay, get_args(Decay)),
        ("--amp", options.amp, AMP),
    ):
        if word not in choices:
            raise UsageError(f"{flag} {word!r} is not known: {nearest(word, choices)}")
    processes.require(options.device, AMP[options.amp])


def settings(
    options: AdaptOptions | PruneOptions, steps: int, validations: int, *, gentle: bool = False
) -> Settings:
    """How the options say to train, for that many steps, with that many looks of the label-free validators.

    gentle: the lower of the usual learning rates, where the options leave it open.
    """
    usual, low = (RECOVERY_LR, GENTLE_RECOVERY_LR) if isinstance(options, PruneOptions) else (LR, GENTLE_LR)
    return Settings(
        steps=steps,
        batch=options.batch,
        lr=options.lr if options.lr is not None else low if gentle else usual,
        weight_decay=options.weight_decay,
        ema=options.ema,
        validations=validations,
        seed=options.seed,
        device=options.device,
        flip=options.flip,
        crop=(options.crop, 1.0) if options.crop else None,
        select=getattr(options, "select", Settings.select),
        optimizer=cast(Optimizer, options.optimizer),
        decay=cast(Decay, options.decay),
        accumulate=options.accumulate,
        precision=AMP[options.amp],
        compile=options.compile,
    )
