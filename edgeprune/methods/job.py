"""What every method works on: the network, its dense reference, images, the budget, and what was done so far."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune import inference, validate
from edgeprune.data.pixels import Pixels
from edgeprune.fitted import Told
from edgeprune.model import Network
from edgeprune.objectives.prior import label_prior
from edgeprune.objectives.source import NEGLIGIBLE, class_weights
from edgeprune.options import PruneOptions
from edgeprune.plan import PruningPlan
from edgeprune.prune import graph, macs
from edgeprune.prune.budget import Budget
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.latency import Timing
from edgeprune.prune.macs import Costs
from edgeprune.run import Run

AGREEMENT_IMAGES = validate.IMAGES  # and the same ones, so that each validation tells agreement too


def find(
    module: nn.Module, example: Tensor, options: PruneOptions, dense: Couplings | None = None
) -> Couplings:
    """What can be cut in a network, without what the user keeps; dense: before earlier cuts."""
    kept = options.keep, options.keep_out, options.keep_in
    return graph.find(module, example, keep=kept[0], keep_out=kept[1], keep_in=kept[2], dense=dense)


@dataclass
class Job:
    """One pruning job.

    network: the student, changed in place. dense: the network as it came, frozen: teacher and reference.
    target: unlabelled images. source: labelled images or None. trace: one entry a cut, JSON values. kept: root of a
    coupling that was cut -> its channels in the dense network that are still there. watch: labelled images whose
    accuracy is written while training, for the reader alone. labelled: target images whose labels a method may learn
    from, because the user gave them for that. steps: of each stage that the student has trained: the next goes on
    with the images where the one before left off. older: the network before it was fine-tuned, for an adaptation
    objective that goes on. before: images counted before the first cut, by the name they have in its trace. knobs: of
    the adaptation objective that goes on. score_knobs: of the criterion. owed: images that stages so far have not seen,
    less than a step's, by who learns. rough: another method goes on, so a latency is met roughly. blind: what is cut
    follows from no target image. looked: images shown for the cut that is made: scores, agreement, batch-norm, example
    inputs; none of them trains. partial: the target lacks classes, so its batch-norm statistics are not the network's.
    """

    network: Network
    dense: nn.Module
    target: Pixels
    source: Pixels | None
    budget: Budget
    options: PruneOptions
    run: Run | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    plans: list[PruningPlan] = field(default_factory=list)
    kept: dict[str, list[int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    watch: Pixels | None = None
    timing: Timing = field(default_factory=Timing)
    labelled: Pixels | None = None
    steps: list[int] = field(default_factory=list)
    older: Network | None = None
    before: dict[str, int] = field(default_factory=dict)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    score_knobs: Mapping[str, Any] = field(default_factory=dict)
    owed: dict[str, float] = field(default_factory=dict)
    rough: bool = False
    blind: bool = False
    partial: bool = False
    looked: int = 0

    @classmethod
    def of(
        cls,
        network: Network,
        images: tuple[Pixels, Pixels | None],
        how: Budget,
        options: PruneOptions,
        run: Run | None,
    ) -> Job:
        """A job whose dense reference is a frozen copy of the network as it is now; `images` are (target, source)."""
        dense = copy.deepcopy(network.module).eval().requires_grad_(False)
        return cls(network, dense, *images, how, options, run)

    def count(self, name: str, images: int) -> None:
        """Add images that something was trained on to the last cut; before there is one, to the first."""
        here = self.trace[-1] if self.trace else self.before
        here[name] = here.get(name, 0) + images

    @property
    def moves_statistics(self) -> bool:
        """Whether batch-norm keeps the network's own statistics, moved with each cut, in place of the target's."""
        return self.partial and self.options.bn_recal

    @property
    def cuts(self) -> int:
        """In how many cuts the budget is reached: what the options say, else one."""
        return self.options.iterations or 1

    @cached_property
    def dense_couplings(self) -> Couplings:
        """The couplings before any cut."""
        return find(self.dense, self.network.example(), self.options)

    @property
    def dense_widths(self) -> dict[str, int]:
        """Width of each coupling before any cut: what floors refer to."""
        return {coupling.root: coupling.width for coupling in self.dense_couplings.all}

    @property
    def channels(self) -> tuple[int, int]:
        """Channels inside blocks that can be cut: those that are still there, and those of the dense network."""
        inner = [coupling for coupling in self.dense_couplings if coupling.inner]
        now = sum(len(self.kept.get(coupling.root, range(coupling.width))) for coupling in inner)
        return now, sum(coupling.width for coupling in inner)

    @cached_property
    def dense_costs(self) -> Costs:
        """MACs and parameters of the dense network as a function of its widths."""
        return macs.trace(self.dense, self.network.example(), self.dense_couplings)

    @cached_property
    def dense_ms(self) -> float:
        """Milliseconds of the dense network on the device that latency is budgeted for: measured, else predicted."""
        if self.timing.dense_ms is not None:
            return self.timing.dense_ms
        return float(self.timing.predictor(self.dense_costs, self.dense_costs).at(self.dense_costs.full))

    @cached_property
    def dense_logits(self) -> Tensor:
        """(N, K) of the dense network on the images of `probe`."""
        return inference.logits_of(self.dense, self.probe, self.network.preprocess)

    def shares(self, *, compares: bool) -> Tensor | None:
        """(K,), mean 1: how much the target holds of each class, by the dense network's answers; None for all alike.

        compares: whether what they weigh compares the domains; the two ways are those of objectives (see WithSource).
        """
        if not self.partial:
            return None
        prior = label_prior(self.dense_logits)
        found = prior * len(prior) if compares else class_weights(self.dense_logits)
        return F.threshold(found, NEGLIGIBLE, 0.0)

    def agreement(self, module: nn.Module) -> float:
        """Share of the images of `probe`, in 0..1, on which a network says what the dense one says."""
        answers = inference.logits_of(module, self.probe, self.network.preprocess).argmax(1)
        return float((answers == self.dense_logits.argmax(1)).double().mean())

    def told(self) -> Told:
        """What tells MACs kept, and agreement of answers (N,) on `probe`; without answers, what the last cut left.

        Networks are measured now, before a training loop takes them to its device.
        """
        share, agrees = 1.0, 1.0
        if self.trace:
            last = self.trace[-1]
            share = last["macs"] / macs.measure(self.dense, self.network.example())[0]
            known = [f"agreement_after_{what}" for what in ("recovery", "batchnorm", "cut")]
            agrees = next(last[name] for name in known if name in last)
        dense = self.dense_logits.argmax(1)

        def told(answers: Tensor | None) -> dict[str, str]:
            now = agrees if answers is None else float((answers == dense).double().mean())
            return {"MACs": f"{share:.0%}", "agreement": f"{now:.1%}"}

        return told

    @property
    def probe(self) -> Pixels:
        """Up to 1,024 target images, evenly spaced, on which agreement is measured."""
        return self.target.spread(AGREEMENT_IMAGES)
