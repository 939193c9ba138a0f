"""The only training loop: a network, an objective, and batches that are a pure function of (seed, step).

It knows no objective by name. What it keeps is chosen without labels, a collapse rolls back to the best, and a run
that was killed at any step goes on to the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from edgeprune import inference, select, snapshot
from edgeprune.data.batches import Batches, RawBatch
from edgeprune.data.pixels import Pixels
from edgeprune.errors import Interrupted, UsageError
from edgeprune.model import Network
from edgeprune.progress import bar
from edgeprune.run import Run
from edgeprune.waist import Batch, Objective, Step

VALIDATION_IMAGES = 1024


@dataclass(frozen=True)
class Settings:
    """How to train.

    steps: optimiser steps. batch: images of each domain in a step. lr: peak learning rate; warmup: share of the steps
    it takes to reach it. head_lr: factor for the classifier. ema: decay of the average of weights that is kept, 0 for
    none. validations: how often the label-free validators look. flip, crop: see edgeprune.data.batches.Batches.
    """

    steps: int
    batch: int = 32
    lr: float = 5e-4
    weight_decay: float = 5e-4
    warmup: float = 0.05
    head_lr: float = 1.0
    ema: float = 0.0
    validations: int = 6
    save_every: int = 50
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"
    flip: bool = True
    crop: tuple[float, float] = (0.7, 1.0)


@dataclass(frozen=True)
class Fit:
    """What training did: the validated steps with their scores, and which of them the weights are from."""

    chosen_step: int
    curves: list[dict[str, float]]
    warnings: list[str] = field(default_factory=list)


@dataclass
class _State:
    """What changes while training, beside the weights themselves."""

    step: int = 0
    curves: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_place: int = -1
    ema: dict[str, Tensor] = field(default_factory=dict)


def fit(
    network: Network,
    objective: Objective,
    target: Pixels,
    source: Pixels | None,
    settings: Settings,
    *,
    run: Run | None = None,
    teacher: nn.Module | None = None,
    stage: str = "adapt",
) -> Fit:
    """Train `network.module` in place and leave the chosen weights in it, on the CPU and in eval mode.

    `stage` names this part of a run: finished parts are taken from the resume folder. UsageError when the objective
    needs what is not given; Interrupted after Ctrl-C, with a snapshot written.
    """
    needs = objective.needs
    if needs.source and (source is None or source.labels is None):
        raise UsageError(f"{type(objective).__name__} needs labelled source images")
    if needs.teacher and teacher is None:
        raise UsageError(f"{type(objective).__name__} needs a teacher network")
    done = run.resume_dir / f"{stage}.done" if run else None
    if done is not None and done.is_file():
        tensors, facts = snapshot.read(done)
        network.module.load_state_dict(snapshot.part(tensors, "module"))
        torch.set_rng_state(tensors["random"])
        return Fit(**facts)
    loop = _Loop(network, objective, target, source, settings, run, teacher, stage)
    try:
        result = loop.work()
    except KeyboardInterrupt:
        loop.save()
        where = f"; go on with --resume ({run.path})" if run else ""
        raise Interrupted(f"stopped at step {loop.state.step} of {settings.steps} ({stage}){where}") from None
    finally:
        loop.close()
    if run:
        facts = {"chosen_step": result.chosen_step, "curves": result.curves, "warnings": result.warnings}
        snapshot.write(run, f"{stage}.done", {"module": network.module}, None, {}, facts)
        (run.resume_dir / stage).unlink(missing_ok=True)
    return result


class _Loop:
    def __init__(
        self,
        network: Network,
        objective: Objective,
        target: Pixels,
        source: Pixels | None,
        settings: Settings,
        run: Run | None,
        teacher: nn.Module | None,
        stage: str,
    ) -> None:
        self.network, self.objective, self.settings, self.stage, self.run = network, objective, settings, stage, run
        self.target = target
        accelerator, _, index = settings.device.partition(":")
        devices: Any = [int(index)] if index else 1
        self.fabric = Fabric(accelerator=accelerator, devices=devices, precision=settings.precision)  # type: ignore[arg-type]
        self.device = self.fabric.device
        module = network.module.to(self.device)
        self.convolutional = any(isinstance(m, nn.Conv2d) for m in module.modules())
        if self.convolutional:  # half again as fast on a CPU
            module.to(memory_format=torch.channels_last)
        self.teacher = teacher.to(self.device).eval() if teacher is not None else None
        objective.to(self.device)
        self.optimizer = torch.optim.AdamW(self._groups(), weight_decay=settings.weight_decay)
        pre, needs, b = network.preprocess, objective.needs, settings.batch
        kind = {"flip": settings.flip, "crop": settings.crop}
        self.target_batches = (
            Batches(target, pre, min(b, len(target)), needs.views, settings.seed, **kind) if needs.views else None  # type: ignore[arg-type]
        )
        self.source_batches = None
        if needs.source and source is not None:
            self.source_batches = Batches(source, pre, min(b, len(source)), ("train",), settings.seed + 1, **kind)  # type: ignore[arg-type]
        self.state = _State()

    def _groups(self) -> list[dict[str, Any]]:
        head = {id(p) for p in self.network.module.get_submodule(self.network.classifier).parameters()}
        body = [p for p in self.network.module.parameters() if p.requires_grad and id(p) not in head]
        tail = [p for p in self.network.module.parameters() if p.requires_grad and id(p) in head]
        own = list(self.objective.parameters())
        if self.objective.needs.freeze_classifier:
            tail = []
        groups = [(body, 1.0), (tail, self.settings.head_lr), (own, 1.0)]
        return [{"params": p, "lr": self.settings.lr, "factor": f} for p, f in groups if p]

    def close(self) -> None:
        for batches in (self.target_batches, self.source_batches):
            if batches is not None:
                batches.close()
        self.network.module.cpu().eval()
        if self.convolutional:
            self.network.module.to(memory_format=torch.contiguous_format)

    def work(self) -> Fit:
        if not self._resume():
            if self.objective.needs.statistics:
                inference.reestimate_batchnorm(self.network.module, self.target, self.network.preprocess)
            self._validate()
        total = self.settings.steps if self.objective.needs.train else 0
        every = max(1, total // max(1, self.settings.validations))
        per_pass = self.target_batches.steps_per_pass if self.target_batches else total + 1
        with bar(self.stage, total, done=self.state.step) as tick:
            while self.state.step < total:
                if self.objective.needs.refresh and self.state.step % per_pass == 0:
                    self.objective.refresh(*self._whole_target())
                terms = self._step(Step(self.state.step, total))
                self.state.step += 1
                tick(1, **terms)
                if self.state.step % every == 0 or self.state.step == total:
                    self._validate()
                if self.state.step % self.settings.save_every == 0 and self.state.step < total:
                    self.save()
        return self._choose()

    def _whole_target(self) -> tuple[Tensor, Tensor]:
        features, logits = inference.predict(self.network, self.target)
        return features.to(self.device), logits.to(self.device)

    def _step(self, step: Step) -> dict[str, float]:
        self.network.module.train()
        self.objective.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * group["factor"] * _rate(step, self.settings.warmup)
        with self.fabric.autocast():
            source = self._forward(self.source_batches, step, track=self.target_batches is None)
            target = self._forward(self.target_batches, step, track=True)
            terms = self.objective.terms(source, target, step)
            loss = torch.stack([t.float() for t in terms.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.optimizer.step()
        self._average()
        shown = {name: float(value.detach()) for name, value in terms.items()}
        if self.run and (step.number % 10 == 0):
            self.run.metric(stage=self.stage, step=step.number, **shown)
        return shown

    def _forward(self, batches: Batches | None, step: Step, *, track: bool) -> Batch | None:
        """Each view in a forward pass of its own, so that each domain is normalised by its own statistics.

        Running statistics follow the target's main view alone: they are what the network is deployed with.
        """
        if batches is None:
            return None
        raw: RawBatch = batches.at(step.number)
        is_target = batches is self.target_batches
        layers = self.objective.needs.layers
        views: dict[str, tuple[Tensor, Tensor]] = {}
        kept: dict[str, Tensor] = {}
        teacher = None
        with inference.Taps(self.network.module, self.network.classifier, layers) as taps:
            for place, (name, images) in enumerate(raw.views.items()):
                x = images.to(self.device)
                x = x.contiguous(memory_format=torch.channels_last) if self.convolutional else x
                with _momentum(self.network.module, None if track and place == 0 else 0.0):
                    logits = self.network.module(x)
                assert taps.features is not None
                views[name] = (taps.features, logits)
                kept = dict(taps.layers) if place == 0 else kept
                if place == 0 and is_target and self.teacher is not None:
                    with torch.no_grad():
                        teacher = self.teacher(x)
        features, logits = next(iter(views.values()))
        labels = raw.labels.to(self.device) if raw.labels is not None and not is_target else None
        return Batch(features, logits, labels, raw.index.to(self.device), views, kept, teacher)

    def _average(self) -> None:
        decay = self.settings.ema
        if not decay:
            return
        now = self.network.module.state_dict()
        if not self.state.ema:
            self.state.ema = {k: v.clone() for k, v in now.items()}
        for key, value in now.items():
            if value.is_floating_point():
                self.state.ema[key].lerp_(value, 1 - min(decay, (1 + self.state.step) / (10 + self.state.step)))
            else:
                self.state.ema[key].copy_(value)

    def _validate(self) -> None:
        """Score the weights that would be kept now (the averaged ones, if there are any), without labels."""
        live = {k: v.clone() for k, v in self.network.module.state_dict().items()}
        if self.state.ema:
            self.network.module.load_state_dict(self.state.ema)
        rows = torch.linspace(0, len(self.target) - 1, min(VALIDATION_IMAGES, len(self.target))).round().long()
        scores = select.validators(*inference.predict(self.network, self.target.subset(rows.tolist())))
        self.state.curves.append({"step": self.state.step, **scores})
        if self.run:
            self.run.metric(stage=self.stage, step=self.state.step, validators=scores)
        if select.choose(self.state.curves).place == len(self.state.curves) - 1:
            self.state.best_place = len(self.state.curves) - 1
            self.state.best = {k: v.clone() for k, v in self.network.module.state_dict().items()}
        self.network.module.load_state_dict(live)

    def _choose(self) -> Fit:
        choice = select.choose(self.state.curves)
        warnings = []
        place = choice.place
        if not self.target_batches:  # the target was not used, so it does not choose either
            place = len(self.state.curves) - 1
            if self.state.ema:
                self.network.module.load_state_dict(self.state.ema)
        else:
            self.network.module.load_state_dict(self.state.best)
        chosen = int(self.state.curves[place]["step"])
        if choice.collapsed and self.target_batches:
            warnings.append(
                f"training collapsed onto few classes ({self.stage}); rolled back to step {chosen}: "
                "try fewer steps or a smaller learning rate"
            )
        for warning in warnings if self.run else ():
            self.run.log(warning)  # type: ignore[union-attr]
        return Fit(chosen, self.state.curves, warnings)

    def save(self) -> None:
        """Write a snapshot from which the very same weights follow."""
        if self.run is None:
            return
        facts = {
            "step": self.state.step,
            "curves": self.state.curves,
            "best_place": self.state.best_place,
            "metrics": self.run.metrics_position,
        }
        modules = {"module": self.network.module, "objective": self.objective}
        extra = {"best": self.state.best, "ema": self.state.ema}
        snapshot.write(self.run, self.stage, modules, self.optimizer, extra, facts)

    def _resume(self) -> bool:
        path = self.run.resume_dir / self.stage if self.run else None
        if path is None or not path.is_file():
            return False
        tensors, facts = snapshot.read(path)
        self.network.module.load_state_dict(snapshot.part(tensors, "module"))
        self.objective.load_state_dict(snapshot.part(tensors, "objective"))
        snapshot.restore_optimizer(self.optimizer, tensors)
        torch.set_rng_state(tensors["random"])
        self.state = _State(
            int(facts["step"]),
            list(facts["curves"]),
            snapshot.part(tensors, "best"),
            int(facts["best_place"]),
            snapshot.part(tensors, "ema"),
        )
        assert self.run is not None
        self.run.rewind_metrics(int(facts["metrics"]))
        self.run.log(f"{self.stage}: resumed at step {self.state.step}")
        return True


def _rate(step: Step, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to 0."""
    first = max(1, round(warmup * step.total))
    if step.number < first:
        return (step.number + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step.number - first) / max(1, step.total - first)))


class _momentum:
    """Batch-norm with another momentum inside the block; None leaves it."""

    def __init__(self, module: nn.Module, momentum: float | None) -> None:
        norms: Callable[[nn.Module], bool] = lambda m: isinstance(m, nn.modules.batchnorm._BatchNorm)  # noqa: E731
        self._norms: Mapping[Any, Any] = {} if momentum is None else {m: m.momentum for m in module.modules() if norms(m)}
        self._momentum = momentum

    def __enter__(self) -> None:
        for norm in self._norms:
            norm.momentum = self._momentum

    def __exit__(self, *_: object) -> None:
        for norm, momentum in self._norms.items():
            norm.momentum = momentum
