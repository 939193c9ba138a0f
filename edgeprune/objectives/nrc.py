"""Source-free adaptation by neighbours: an image should be predicted as its nearest neighbours are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.objectives.prior import label_prior
from edgeprune.objectives.ranges import AT_LEAST_ONE, expect
from edgeprune.objectives.shot import marginal_entropy
from edgeprune.waist import Batch, Needs, Objective, Step, Task


class NRC(Objective):
    """-mean_i sum_k A_ik S_k.p_i - r mean_i sum_k sum_m S_m.p_i - H(mean p), k and m neighbours, S the bank of scores.

    Yang et al., Exploiting the Intrinsic Neighborhood Structure for Source-free Domain Adaptation, NeurIPS 2021, arXiv
    2110.04202, eq. 3, 6 and 7. A_ik is 1 when i is among the neighbours of k, else r = 0.1. As in the authors' code the
    banks follow each batch, and there is no term of self-regularisation. Ours: the banks are made anew before each
    pass, and batch-norm is re-estimated first. `partial`: KL(q || mean p) in place of the entropy, q the label prior at
    the first look at the target, with one image more that all classes share. It grows without bound where a class of q
    is given up; KL(mean p || q) does not, and all images ended in the commonest class. The classifier is frozen then,
    as SHOT's is: with one that learns, priors that differ by less than an image of each class ended 20 points apart on
    PACS.
    """

    @dataclass(frozen=True)
    class Knobs:
        """near: K, neighbours of an image. further: M, neighbours of each of those. partial: fewer classes."""

        near: int = 4
        further: int = 3
        partial: bool = False

        def __post_init__(self) -> None:
            expect(self, near=AT_LEAST_ONE, further=AT_LEAST_ONE)

    needs = Needs(refresh=True, statistics=True)
    features: Tensor
    scores: Tensor
    prior: Tensor

    def __init__(self, task: Task, knobs: Any = None) -> None:
        super().__init__(task, knobs)
        self.register_buffer("features", torch.empty(0, task.features))
        self.register_buffer("scores", torch.empty(0, task.classes))
        self.register_buffer("prior", torch.zeros(task.classes))
        if self.knobs.partial:
            self.needs = replace(self.needs, freeze_classifier=True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("features", "scores"):  # their length is that of the target
            if prefix + name in state_dict:
                setattr(self, name, state_dict[prefix + name].to(getattr(self, name).device, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def refresh(self, features: Tensor, logits: Tensor) -> None:
        """Banks from features (M, D) and logits (M, K) of the whole target."""
        self.features, self.scores = F.normalize(features.float(), dim=1), logits.float().softmax(1)
        if self.knobs.partial and not bool(self.prior.any()):
            # of no class it is certain that it is absent: all of them share one image more
            counted = label_prior(logits) * len(logits) + 1 / logits.shape[1]
            self.prior = (counted / counted.sum()).to(self.prior)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`target` with features (N, D), logits (N, K) and the index of each image."""
        assert target is not None
        p = target.logits.float().softmax(1)
        with torch.no_grad():
            last = {image: row for row, image in enumerate(target.index.tolist())}  # an image may come twice
            rows, images = list(last.values()), list(last)
            self.features[images] = F.normalize(target.features.float(), dim=1)[rows]
            self.scores[images] = p[rows]
            pull = neighbour_pull(
                self.features, self.scores, target.index, self.knobs.near, self.knobs.further
            )
        terms = {"neighbours": -(p * pull).sum(1).mean()}
        if self.knobs.partial:
            log_mean = target.logits.float().log_softmax(1).logsumexp(0) - math.log(len(p))
            terms["diversity"] = (self.prior * (self.prior.log() - log_mean)).sum()
        else:
            terms["diversity"] = -marginal_entropy(target.logits.float())
        return terms


def neighbour_pull(
    features: Tensor, scores: Tensor, index: Tensor, near: int, further: int, weak: float = 0.1
) -> Tensor:
    """sum_k A_ik S_k + r sum_k sum_m S_m, (N, K), for the images `index` (N,) of the banks (M, D) and (M, K).

    A set of few images has fewer neighbours to ask.
    """
    most = len(features) - 1
    near, further = min(near, most), min(further, most)
    first = _neighbours(features, index, near)
    second = _neighbours(features, first.flatten(), further).view(len(index), near, further)
    mutual = (second == index[:, None, None]).any(2)
    affinity = torch.where(mutual, 1.0, weak)
    return (affinity.unsqueeze(2) * scores[first]).sum(1) + weak * scores[second.flatten(1)].sum(1)


def _neighbours(features: Tensor, index: Tensor, count: int) -> Tensor:
    """The `count` most similar rows (N, count) of each row in `index` (N,), without itself."""
    with torch.autocast(features.device.type, enabled=False):  # half precision would swap neighbours
        similarity = features[index] @ features.T
    similarity[torch.arange(len(index), device=index.device), index] = -2.0
    return similarity.topk(count, dim=1).indices
