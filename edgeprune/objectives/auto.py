"""The recommended objective: sure and diverse predictions, and strong views that agree with what all images say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.objectives.shot import centroid_labels, marginal_entropy, mean_entropy
from edgeprune.objectives.source import labelled
from edgeprune.waist import Batch, Needs, Objective, Step, Task


class Auto(Objective):
    """CE on the source, if there is one + H-terms + mean_i 1[i agreed] CE(g(strong_i), pseudo_i).

    The H-terms are SHOT's information maximisation, mean_i H(p_i) - H(mean p) (Liang et al., ICML 2020, arXiv
    2002.08546, eq. 4), the pseudo-labels its class centroids (eq. 6 and 7), refreshed before each pass. That only those
    images teach whose nearest centroid and whose own prediction agree, and that they teach a strong view of the image
    (FixMatch, Sohn et al., NeurIPS 2020, arXiv 2001.07685) in place of the view they were labelled on, is ours. Source
    images teach by strong views too.
    `partial`: the target has fewer classes: no diversity term, rare classes get no centroid.
    """

    @dataclass(frozen=True)
    class Knobs:
        """information: weight of the H-terms. consistency: of the strong views. partial. rare: images of a class."""

        information: float = 1.0
        consistency: float = 1.0
        partial: bool = False
        rare: int = 10

    needs = Needs(
        welcome_source=True,
        source_view="strong",
        views=("train", "strong"),
        refresh=True,
        freeze_classifier=True,
        statistics=True,
    )
    pseudo: Tensor

    def __init__(self, task: Task, knobs: Any = None) -> None:
        super().__init__(task, knobs)
        self.register_buffer("pseudo", torch.empty(0, dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "pseudo" in state_dict:  # its length is that of the target
            self.pseudo = state_dict[prefix + "pseudo"].to(self.pseudo.device, copy=True)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def refresh(self, features: Tensor, logits: Tensor) -> None:
        """Pseudo-labels of the whole target from features (M, D) and logits (M, K); -1 where the two disagree."""
        nearest = centroid_labels(features, logits, self.knobs.rare if self.knobs.partial else 0)
        self.pseudo = torch.where(nearest == logits.argmax(1), nearest, -1)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`target` with the views "train" and "strong"; `source` with labels, or None."""
        assert target is not None
        knobs, logits = self.knobs, target.logits.float()
        terms = {} if source is None else {"source": labelled(source)}
        terms["entropy"] = knobs.information * mean_entropy(logits)
        if not knobs.partial:
            terms["diversity"] = -knobs.information * marginal_entropy(logits)
        strong = target.views["strong"][1].float()
        teaching = F.cross_entropy(strong, self.pseudo[target.index], ignore_index=-1, reduction="sum")
        terms["consistency"] = knobs.consistency * teaching / len(strong)
        return terms
