"""The recommended objective: on strong views, sure and diverse predictions that agree with what all images say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.objectives.prior import plentiful
from edgeprune.objectives.propagation import propagate, surest
from edgeprune.objectives.ranges import AT_LEAST_ONE, NOT_ALL, NOT_NEGATIVE, SOME_SHARE, expect
from edgeprune.objectives.shot import marginal_entropy, mean_entropy
from edgeprune.objectives.source import WithSource
from edgeprune.waist import Batch, Needs, Step, Task

# Between the two tasks that it was chosen on, knowing which of them gains.
SMALL = 0.88  # of Task.settled: CIFAR behind JPEG 0.94 to 0.96, PACS from photos to paintings 0.77 to 0.83


class Auto(WithSource):
    """CE on the source, if there is one + H-terms + mean_i 1[i sure] CE(p_i, pseudo_i), p_i of strong views.

    The H-terms are SHOT's information maximisation, mean_i H(p_i) - H(mean p) (Liang et al., ICML 2020, arXiv
    2002.08546, eq. 4). The pseudo-labels are predictions of plain views after they flowed between nearest neighbours
    (Zhou et al., NeurIPS 2003; edgeprune.objectives.propagation), refreshed before each pass, and the surest share of
    each class teaches; that strong views learn them is FixMatch's (Sohn et al., NeurIPS 2020, arXiv 2001.07685).
    Neighbours are sought in the network's own features and, when `task.beside` has them, in those of the network before
    it was fine-tuned, which hold what fine-tuning lost (Zhang et al., Rethinking the Role of Pre-Trained Networks in
    Source-Free Domain Adaptation, ICCV 2023, arXiv 2212.07585); the graph over both, and the joining of all this, is
    ours. Source images teach by strong views too.
    `partial`: the target has fewer classes: no diversity term, class masses are left alone, classes that the label
    prior gives at most `rare` images teach nothing, and source images count by PADA's class weights, of the network's
    own answers.
    """

    @dataclass(frozen=True)
    class Knobs:
        """information: weight of the H-terms. pseudo: of the pseudo-labels. sure: share of each class that teaches.

        near: neighbours of an image. flow: alpha, how far labels flow, 0 to 1. partial: fewer classes.
        rare: that many images of a class, by the label prior, or fewer do not teach it when partial.
        view: what images learn on, "strong" or "weak". statistics: batch-norm's, "live", or "frozen" at a blend of the
        network's own and the target's. Where the shift is small and no source is there, "auto" is "weak" and "frozen",
        and sure is 0.9 unless it is given; else "strong", "live" ("frozen" when partial) and 0.7. teacher: whose
        answers become pseudo-labels, the network's or those of the running average of its weights, a mean teacher.
        """

        information: float = 1.0
        pseudo: float = 1.0
        sure: float | None = None
        near: int = 10
        flow: float = 0.95
        partial: bool = False
        rare: int = 10
        view: Literal["auto", "strong", "weak"] = "auto"
        statistics: Literal["auto", "live", "frozen"] = "auto"
        teacher: Literal["network", "average"] = "network"

        def __post_init__(self) -> None:
            expect(self, information=NOT_NEGATIVE, pseudo=NOT_NEGATIVE, sure=SOME_SHARE)
            expect(self, near=AT_LEAST_ONE, flow=NOT_ALL, rare=NOT_NEGATIVE)

    needs = Needs(
        welcome_source=True,
        welcome_beside=True,
        welcome_settled=True,
        source_view="strong",
        views=("strong",),
        refresh=True,
        freeze_classifier=True,
        statistics=True,
    )
    pseudo: Tensor

    def __init__(self, task: Task, knobs: Any = None) -> None:
        super().__init__(task, knobs)
        small = task.settled is not None and task.settled >= SMALL
        weak = self.knobs.view == "weak" or (self.knobs.view == "auto" and small)
        frozen = self.knobs.statistics == "frozen" or (
            self.knobs.statistics == "auto" and (small or self.partial)
        )
        view = "weak" if weak else "strong"
        averaged = self.knobs.teacher == "average"
        needs = replace(type(self).needs, views=(view,), source_view=view, averaged=averaged)
        self.needs = replace(needs, frozen_statistics=frozen, gentle=small)
        self.sure = self.knobs.sure if self.knobs.sure is not None else 0.9 if small else 0.7
        self.register_buffer("pseudo", torch.empty(0, dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "pseudo" in state_dict:  # its length is that of the target
            self.pseudo = state_dict[prefix + "pseudo"].to(self.pseudo.device, copy=True)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def refresh(self, features: Tensor, logits: Tensor) -> None:
        """Pseudo-labels of the whole target from features (M, D) and logits (M, K); -1 for those that teach nothing."""
        super().refresh(features, logits)
        knobs, seen = self.knobs, [features]
        if self.task.beside is not None:
            seen.append(self.task.beside)
        p = logits.float().softmax(1)
        p = propagate(seen, p, near=knobs.near, alpha=knobs.flow, level=not knobs.partial)
        pseudo = surest(p, self.sure)
        if knobs.partial:
            enough = plentiful(logits, knobs.rare).to(pseudo.device)
            pseudo = torch.where(enough[pseudo.clamp_min(0)], pseudo, -1)
        self.pseudo = pseudo.to(logits.device)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`target` with logits (N, K) and the index of each image; `source` with labels, or None."""
        assert target is not None
        knobs, logits = self.knobs, target.logits.float()
        terms = {} if source is None else {"source": self.labelled(source)}
        terms["entropy"] = knobs.information * mean_entropy(logits)
        if not knobs.partial:
            terms["diversity"] = -knobs.information * marginal_entropy(logits)
        teaching = F.cross_entropy(logits, self.pseudo[target.index], ignore_index=-1, reduction="sum")
        terms["pseudo"] = knobs.pseudo * teaching / len(logits)
        return terms
