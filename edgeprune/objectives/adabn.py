"""Batch-norm statistics of the target, and nothing else: the floor that every other objective must beat."""

from __future__ import annotations

from torch import Tensor

from edgeprune.waist import Batch, Needs, Objective, Step


class AdaBN(Objective):
    """Replace the running statistics by the target's; no parameter changes.

    Li et al., Revisiting Batch Normalization for Practical Domain Adaptation, 2016, arXiv 1603.04779.
    """

    needs = Needs(views=("plain",), statistics=True, train=False)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Nothing to minimise; never called."""
        return {}
