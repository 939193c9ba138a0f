"""Matching of joint embeddings: features and predictions together should look alike in both domains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.objectives.mmd import gaussian_kernels, squared_distances, squared_mmd
from edgeprune.objectives.ranges import NOT_NEGATIVE, expect
from edgeprune.objectives.source import PartialKnobs, WithSource
from edgeprune.waist import Batch, Step

SIGMA = 0.92  # of the kernel on predictions, as in the authors' code and TLLib


class JAN(WithSource):
    """CE on the source + weight * JMMD^2, the MMD under the product of a kernel on f and one on softmax(z).

    Long et al., Deep Transfer Learning with Joint Adaptation Networks, ICML 2017, arXiv 1605.06636, eq. 9 and 10. Ours:
    the U statistic over all pairs. `partial`: source rows are weighted by class (see WithSource).
    """

    @dataclass(frozen=True)
    class Knobs(PartialKnobs):
        """weight: of the discrepancy."""

        weight: float = 1.0

        def __post_init__(self) -> None:
            expect(self, weight=NOT_NEGATIVE)

    compares = True

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Both batches with features (N, D) and logits (N, K)."""
        assert source is not None
        assert target is not None
        features = gaussian_kernels(torch.cat([source.features, target.features]).float())
        p = torch.cat([source.logits, target.logits]).float().softmax(1)
        kernel = features * torch.exp(-squared_distances(p) / (2 * SIGMA**2))
        weight = self.weights(source)
        weight = weight if weight is not None else torch.ones(len(source.logits), device=kernel.device)
        mmd = squared_mmd(kernel, weight, unbiased=True)
        return {"source": self.labelled(source), "jan": self.knobs.weight * mmd}
