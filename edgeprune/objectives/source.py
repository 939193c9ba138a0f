"""Cross entropy on labelled source images: what the cloud did, and how a new classifier is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from edgeprune.waist import Batch, Needs, Objective, Step


class Source(Objective):
    """mean_i CE(g(x_i), y_i) with label smoothing; the target is not looked at."""

    @dataclass(frozen=True)
    class Knobs:
        """smoothing: of the labels, in 0..1 (SHOT trains its source model with 0.1)."""

        smoothing: float = 0.1

    needs = Needs(source=True, views=())

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`source` with logits (N, K) and labels (N,)."""
        return {"source": labelled(source, self.knobs.smoothing)}


def labelled(source: Batch | None, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of a labelled batch, a scalar; ValueError when there is none."""
    if source is None or source.labels is None:
        raise ValueError("a labelled source batch is expected; the objective's needs must say source=True")
    return F.cross_entropy(source.logits.float(), source.labels, label_smoothing=smoothing)
