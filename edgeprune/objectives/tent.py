"""Entropy of the predictions, lowered through the gains and shifts of normalisation layers alone."""

from __future__ import annotations

from torch import Tensor

from edgeprune.objectives.shot import mean_entropy
from edgeprune.waist import Batch, Needs, Objective, Step


class Tent(Objective):
    """mean_i H(p_i), over the affine parameters of normalisation layers.

    Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021, arXiv 2006.10726, section 3. Ours:
    many passes over a fixed set. While it learns batches are normalised by their own statistics, as in the paper;
    running ones, re-estimated first and kept up, are what it is looked at and deployed with.
    """

    needs = Needs(statistics=True, norms_only=True)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`target` with logits (N, K)."""
        assert target is not None
        return {"entropy": mean_entropy(target.logits.float())}
