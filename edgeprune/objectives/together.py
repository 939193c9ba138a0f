"""Several objectives at once: their terms with weights, and what any of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from edgeprune.waist import Batch, Needs, Objective, Step


class Together(Objective):
    """sum_j w_j L_j; each objective sees the main view that it asked for.

    A teacher and the inside of the network are shown one main view: ValueError when two objectives that ask for those
    differ in theirs.
    """

    def __init__(self, parts: Sequence[tuple[float, Objective]]) -> None:
        super().__init__(parts[0][1].task)
        self.parts = nn.ModuleList(objective for _, objective in parts)
        self.weights = tuple(weight for weight, _ in parts)
        self.partial = any(objective.partial for _, objective in parts)
        needs = [objective.needs for _, objective in parts]
        train = any(n.train for n in needs)
        inward = [n for n in needs if n.views and (n.teacher or n.layers)]
        main = {n.views[0] for n in inward}
        if len(main) > 1:
            raise ValueError(f"a teacher is shown one main view; received {sorted(main)}")
        viewing = [n.views for n in (*inward, *needs) if n.views and (n.train or not train)]
        self.needs = Needs(
            source=any(n.source for n in needs),
            welcome_source=any(n.welcome_source for n in needs),
            source_view=next(
                (n.source_view for n in needs if n.source or n.welcome_source), Needs.source_view
            ),
            views=tuple(dict.fromkeys(v for views in viewing for v in views)),
            layers=tuple(dict.fromkeys(layer for n in needs for layer in n.layers)),
            teacher=any(n.teacher for n in needs),
            refresh=any(n.refresh for n in needs),
            averaged=any(n.averaged for n in needs),
            freeze_classifier=any(n.freeze_classifier for n in needs),
            statistics=any(n.statistics for n in needs),
            train=train,
            norms_only=all(n.norms_only for n in needs if n.train) and train,
            last=any(n.last for n in needs),
            frozen_statistics=any(n.frozen_statistics for n in needs),
            own_rate=max(n.own_rate for n in needs),
            blend=next((n.blend for n in needs if n.statistics), Needs.blend),
        )

    def refresh(self, features: Tensor, logits: Tensor) -> None:
        """Hand features (M, D) and logits (M, K) to every part that asked."""
        for part in self.parts:
            if isinstance(part, Objective) and part.needs.refresh:
                part.refresh(features, logits)

    def before_forward(self, domain: Literal["source", "target"]) -> None:
        """Tell every part."""
        for part in self.parts:
            if isinstance(part, Objective):
                part.before_forward(domain)

    def before_update(self, step: Step) -> None:
        """Tell every part."""
        for part in self.parts:
            if isinstance(part, Objective):
                part.before_update(step)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """Every part's terms, weighted; two of one name are added."""
        found: dict[str, Tensor] = {}
        for weight, part in zip(self.weights, self.parts, strict=True):
            assert isinstance(part, Objective)
            seen = _main(target, part.needs.views[:1])
            for name, value in part.terms(source, seen, step).items():
                found[name] = found[name] + weight * value if name in found else weight * value
        return found


def _main(target: Batch | None, view: tuple[str, ...]) -> Batch | None:
    """The batch with that view for its main one."""
    if target is None or not view or view[0] not in target.views:
        return target
    features, logits = target.views[view[0]]
    return target if logits is target.logits else replace(target, features=features, logits=logits)
