"""Matching of mean embeddings: features of both domains should look alike to a family of kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.objectives.mmd import gaussian_kernels, squared_mmd
from edgeprune.objectives.ranges import NOT_NEGATIVE, expect
from edgeprune.objectives.source import PartialKnobs, WithSource
from edgeprune.waist import Batch, Step


class DAN(WithSource):
    """source * CE on the source + weight * MK-MMD^2(f_s, f_t).

    Long et al., Learning Transferable Features with Deep Adaptation Networks, ICML 2015, arXiv 1502.02791, eq. 1 and
    5, on the classifier's input alone, with five Gaussian kernels of equal weight. Ours: the U statistic over all
    pairs (the paper's is over n / 2 quadruples). `partial`: source rows are weighted by class (see WithSource).
    """

    @dataclass(frozen=True)
    class Knobs(PartialKnobs):
        """weight: of the discrepancy. source: of the cross entropy."""

        weight: float = 1.0
        source: float = 1.0

        def __post_init__(self) -> None:
            expect(self, weight=NOT_NEGATIVE, source=NOT_NEGATIVE)

    compares = True

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Both batches with features (N, D); a batch of one image has no discrepancy within it."""
        assert source is not None
        assert target is not None
        kernel = gaussian_kernels(torch.cat([source.features, target.features]).float())
        weight = self.weights(source)
        weight = weight if weight is not None else torch.ones(len(source.logits), device=kernel.device)
        mmd = squared_mmd(kernel, weight, unbiased=True)
        return {"source": self.knobs.source * self.labelled(source), "dan": self.knobs.weight * mmd}
