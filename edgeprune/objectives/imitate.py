"""Distillation of a cut network from the dense one it was cut from: its answers, and the channels that both have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.objectives.distill import softened_kl
from edgeprune.waist import Batch, Needs, Objective, Step, Task


@dataclass(frozen=True)
class Shared:
    """What still enters a layer: the dense `channels` on `axis` of its input, increasing."""

    channels: tuple[int, ...]
    axis: int


class Imitate(Objective):
    """T^2 KL(teacher || student) + weight * mean over layers of ||s_l - t_l[kept_l]||^2 / ||t_l[kept_l]||^2.

    s_l, t_l: what enters layer l of the student and of the teacher; kept_l: the teacher's channels that the student
    still has, so nothing has to be learned to compare them. Hints are Romero et al., FitNets, ICLR 2015, arXiv
    1412.6550; that a cut network shares its channels with the dense one, and the scale-free error, are ours.
    """

    @dataclass(frozen=True)
    class Knobs:
        """temperature: T. weight: of the layers' error."""

        temperature: float = 2.0
        weight: float = 1.0

    def __init__(self, task: Task, kept: Mapping[str, Shared], knobs: Any = None) -> None:
        """`kept`: dotted name of a layer -> what both networks have of its input."""
        super().__init__(task, knobs)
        self.layers = tuple(kept)
        self.axes = tuple(one.axis for one in kept.values())
        self.needs = Needs(teacher=True, layers=self.layers)
        for place, one in enumerate(kept.values()):  # dots are not allowed in a buffer's name
            channels = torch.tensor(one.channels, dtype=torch.int64)
            self.register_buffer(f"kept{place}", channels, persistent=False)

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        """`target` with logits (N, K) and the teacher's (N, K), and what entered the layers of both."""
        assert target is not None
        assert target.teacher is not None
        terms = {
            "distill": softened_kl(target.teacher.float(), target.logits.float(), self.knobs.temperature)
        }
        errors = [
            relative_error(
                target.layers[name], target.teacher_layers[name], self.get_buffer(f"kept{place}"), axis
            )
            for place, (name, axis) in enumerate(zip(self.layers, self.axes, strict=True))
        ]
        if errors:
            terms["layers"] = self.knobs.weight * torch.stack(errors).mean()
        return terms


def relative_error(student: Tensor, teacher: Tensor, kept: Tensor, axis: int) -> Tensor:
    """||s - t[kept]||^2 / ||t[kept]||^2, a scalar; `kept` are indices on `axis` of the teacher's."""
    wanted = teacher.index_select(axis, kept).float()
    return (student.float() - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)
