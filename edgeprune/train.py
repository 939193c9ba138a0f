"""The only training loop: a network, an objective, and batches that are a pure function of (seed, step).

It knows no objective by name. What it keeps is chosen without labels, and a killed run goes on to the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune import inference, optimise, processes, select, snapshot, validate, weights
from edgeprune.data.batches import Batches, RawBatch
from edgeprune.data.cache import Streamed
from edgeprune.data.pixels import Pixels
from edgeprune.errors import Interrupted
from edgeprune.fitted import Fit, State, Told
from edgeprune.model import Network
from edgeprune.optimise import Settings
from edgeprune.progress import bar
from edgeprune.run import Run
from edgeprune.waist import Batch, Objective, Step

__all__ = ["Fit", "Settings", "fit"]

AHEAD = 4  # batches of a domain that are made at once where a GPU would wait for them; on a CPU training has the cores


def fit(  # noqa: PLR0913 (what to train, on what, and how, in one place)
    network: Network,
    objective: Objective,
    target: Pixels,
    source: Pixels | None,
    settings: Settings,
    *,
    run: Run | None = None,
    teacher: nn.Module | None = None,
    stage: str = "adapt",
    watch: Pixels | None = None,
    held: Pixels | None = None,
    begun: int = 0,
    told: Told = lambda _: {},
) -> Fit:
    """Train `network.module` in place and leave the chosen weights in it, on the CPU and in eval mode.

    `stage` names this part of a run: finished parts are taken from the resume folder. `watch`: labelled images whose
    accuracy is written beside each validation, for the reader alone. `held`: labelled source images for validators
    alone. `begun`: steps of earlier parts on the same images; batches go on from there, so that short parts do not all
    see the same first ones. `told`: shown before the loss. UsageError when what the objective needs is not given;
    Interrupted after Ctrl-C, with a snapshot written.
    """
    labelled = source is not None and source.labels is not None
    objective.needs.require(type(objective).__name__, source=labelled, teacher=teacher is not None)
    if objective.needs.statistics and not objective.needs.train:
        validate.require_batchnorm(network)
    if run is not None:
        snapshot.same_images(run, stage, {"target": target.names, "source": source.names if source else []})
        if (known := snapshot.finished(run, stage, network.module, objective)) is not None:
            return Fit(**known)
    taught = source is not None and (objective.needs.source or objective.needs.welcome_source)
    with snapshot.held_interrupts() as check, optimise.learning(network, objective.needs, taught=taught):
        loop = _Loop(network, objective, (target, source, held), settings, run, teacher, stage)
        loop.begun = begun
        loop.watch = watch.spread(validate.IMAGES) if watch else None
        try:
            with inference.several_values():
                result = loop.work(check, told)
        except KeyboardInterrupt:
            if loop.whole:  # else the last snapshot stands: half a step cannot be gone on with
                loop.save()
            on = f" ({stage})" + (f"; go on with --resume ({run.path})" if run else "")
            raise Interrupted(f"stopped at step {loop.state.step} of {settings.steps}{on}") from None
        finally:
            loop.close()
        if run is not None and processes.rank() == 0:
            modules = {"module": network.module, "objective": objective}
            snapshot.write(run, f"{stage}.done", modules, None, {}, asdict(result))
            (run.resume_dir / stage).unlink(missing_ok=True)
    return result


class _Loop:
    """`whole`: no step is half done, so that a snapshot can be gone on with."""

    def __init__(
        self,
        network: Network,
        objective: Objective,
        pixels: tuple[Pixels, Pixels | None, Pixels | None],
        settings: Settings,
        run: Run | None,
        teacher: nn.Module | None,
        stage: str,
    ) -> None:
        self.network, self.objective, self.settings = network, objective, settings
        self.stage, self.run, self.begun = stage, run, 0
        self.watch: Pixels | None = None
        self.target, source, held = pixels
        self.held, self.frozen = len(held) if held else 0, objective.needs.frozen_statistics
        self.validator = validate.Validator(network, self.target, held, frozen=self.frozen)
        self.partial = objective.partial
        self.whole, self.state = False, State()
        self.fabric = processes.fabric(settings.device, settings.precision)
        self.device, self.precision = self.fabric.device, self.fabric.strategy.precision
        module = network.module.to(self.device)
        self.format = inference.memory_format(module, network.example())
        module.to(memory_format=self.format)
        if settings.compile:
            module.compile()
        asked = objective.needs.teacher  # its answers cost a forward pass of the dense network
        self.teacher = teacher.to(self.device).eval() if asked and teacher is not None else None
        objective.to(self.device)
        self.optimizer = optimise.optimizer(network, objective, settings)
        needs, seed = objective.needs, settings.seed
        self.target_batches = self._batches(self.target, needs.views, seed) if needs.views else None
        taken = source if needs.source or needs.welcome_source else None
        self.source_batches = self._batches(taken, (needs.source_view,), seed + 1) if taken else None

    def _batches(self, pixels: Pixels, views: tuple[str, ...], seed: int) -> Batches:
        s = self.settings
        batch, pre = processes.divided(min(s.batch, len(pixels))), self.network.preprocess
        crop = s.crop or ((0.7, 1.0) if max(pre.size) > 64 else (1.0, 1.0))
        ahead = 1 if self.device.type == "cpu" or isinstance(pixels.images, Streamed) else AHEAD
        return Batches(pixels, pre, batch, views, seed, flip=s.flip, crop=crop, ahead=ahead)

    def close(self) -> None:
        for batches in (self.target_batches, self.source_batches):
            if batches is not None:
                batches.close()
        vars(self.network.module).pop("_compiled_call_impl", None)  # no public call takes back `compile`
        self.network.module.cpu().eval()
        self.objective.cpu()
        if self.teacher is not None:
            self.teacher.cpu()
        self.network.module.to(memory_format=torch.contiguous_format)

    def work(self, check: Callable[[], None], told: Told) -> Fit:
        """Train; `check` is called after each whole step, and may raise KeyboardInterrupt."""
        total = self.settings.steps if self.objective.needs.train else 0
        if not self._resume():
            if self.run is not None:
                snapshot.forget_metrics(self.run, self.stage)
            if self.objective.needs.statistics:
                self._take_statistics()
            if self.settings.validations or not total:
                self._validate()
        processes.alike(self.network.module, self.objective)
        every = max(1, -(-total // max(1, self.settings.validations)))
        self.whole = True
        check()
        with bar(self.stage, total, done=self.state.step) as tick:
            beside = told(self.validator.answers)
            while self.state.step < total:
                self.whole = False
                tick(1, **beside, **self._step(Step(self.state.step, total)))
                self.state.step += 1
                if self.state.step % every == 0 or self.state.step == total:
                    self._validate()
                    beside = told(self.validator.answers)
                self.whole = True
                if self.state.step % self.settings.save_every == 0 and self.state.step < total:
                    self.save()
                check()
        return self._choose()

    def _take_statistics(self) -> None:
        needs = self.objective.needs
        share = validate.begin_statistics(self.network, self.target, needs, partial=self.partial)
        if self.run is not None and share != 1:
            self.run.log(f"batch-norm: {100 * share:.3g}% of the target's statistics, the rest its own")

    @contextmanager
    def _as_kept(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """With other weights, and statistics of plain target images: running ones lag, and are of other views."""
        module = self.network.module
        with weights.swapped(module, values):
            if self.target_batches is not None and not self.frozen:
                inference.reestimate_batchnorm(module, self.validator.target, self.network.preprocess)
            yield

    def _refresh(self, step: Step) -> None:
        """Show the objective the whole target before each pass over it, when it asked."""
        batches = self.target_batches  # a pass is as long where none of it are taken
        per_pass = batches.steps_per_pass if batches else -(-len(self.target) // self.settings.batch)
        # a new pass begins with this batch, or began in the last step
        first = (self.begun + step.number) * self.settings.accumulate
        due = step.number == 0 or first % per_pass < self.settings.accumulate
        if self.objective.needs.refresh and due:
            average = self.state.ema if self.objective.needs.averaged else {}
            with self._as_kept(average):
                features, logits = inference.predict(self.network, self.target)
            self.objective.refresh(features.to(self.device), logits.to(self.device))

    def _step(self, step: Step) -> dict[str, float]:
        self._refresh(step)
        now = self.begun + step.number
        torch.manual_seed((self.settings.seed + 1) * 1_000_003 + now)  # dropout, on every device
        inference.training(self.network.module, frozen=self.frozen)
        self.objective.train()
        optimise.set_rates(self.optimizer, self.settings, step)
        self.optimizer.zero_grad(set_to_none=True)
        shown: dict[str, float] = {}
        parts = self.settings.accumulate
        for number in range(now * parts, (now + 1) * parts):
            with self.fabric.autocast():
                source = self._forward(self.source_batches, number, track=self.target_batches is None)
                target = self._forward(self.target_batches, number, track=True)
                terms = self.objective.terms(source, target, step)
                loss = torch.stack([t.float() for t in terms.values()]).sum() / parts
            self.fabric.backward(loss)
            for name, value in terms.items():
                shown[name] = shown.get(name, 0.0) + float(value.detach()) / parts
        processes.mean_gradients(self.network.module, self.objective)
        self.precision.unscale_gradients(self.optimizer)
        self.objective.before_update(step)
        self.precision.optimizer_step(self.optimizer)
        if self.settings.ema:
            weights_now = self.network.module.state_dict()
            self.state.ema = optimise.averaged(
                self.state.ema, weights_now, self.settings.ema, self.state.step
            )
        if self.run and (step.number % 10 == 0):
            self.run.metric(stage=self.stage, step=step.number, **shown)
        return {"loss": sum(shown.values()), **shown}

    def _forward(self, batches: Batches | None, number: int, *, track: bool) -> Batch | None:
        """Each view in a forward pass of its own, so that each domain is normalised by its own statistics.

        Running statistics follow the target's main view alone: they are what the network is deployed with.
        """
        if batches is None:
            return None
        raw: RawBatch = batches.at(number)
        is_target = batches is self.target_batches
        layers = self.objective.needs.layers
        self.objective.before_forward("target" if is_target else "source")
        views: dict[str, tuple[Tensor, Tensor]] = {}
        kept: dict[str, Tensor] = {}
        teacher: Tensor | None = None
        taught: dict[str, Tensor] = {}
        with inference.Taps(self.network.module, self.network.classifier, layers) as taps:
            for place, (name, images) in enumerate(raw.views.items()):
                x = processes.part(images).to(self.device).contiguous(memory_format=self.format)
                with inference.tracking(self.network.module, track and place == 0):
                    logits = self.network.module(x)
                assert taps.features is not None
                views[name] = (processes.gathered(taps.features), processes.gathered(logits))
                if place == 0:
                    kept = {key: processes.gathered(value) for key, value in taps.layers.items()}
                if place == 0 and is_target and self.teacher is not None:
                    teacher, taught = self._teach(self.teacher, x)
        features, logits = next(iter(views.values()))
        labels = raw.labels.to(self.device) if raw.labels is not None and not is_target else None
        return Batch(features, logits, labels, raw.index.to(self.device), views, kept, teacher, taught)

    def _teach(self, teacher: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        layers = self.objective.needs.layers
        with torch.no_grad(), inference.Taps(teacher, self.network.classifier, layers) as taps:
            logits = processes.gathered(teacher(x))
            return logits, {key: processes.gathered(value) for key, value in taps.layers.items()}

    def _validate(self) -> None:
        """Score the weights that would be kept now (the averaged ones, if there are any), without labels.

        Where no look was asked for and the last weights stay, they are kept without. The network as it came keeps its
        own statistics; how far they drift is told from the target's.
        """
        module, first = self.network.module, not self.state.step
        with weights.swapped(module, {}) if first else self._as_kept(self.state.ema):
            facts: dict[str, Any] = {}
            if self.settings.validations or not self._last:
                facts["validators"] = self.validator()
                self.state.curves.append({"step": self.state.step, **facts["validators"]})
            if self.watch is not None:
                facts["accuracy"] = inference.evaluate(self.network, self.watch)
                self.state.watched.append(facts["accuracy"])
            if self.run and facts:
                self.run.metric(stage=self.stage, step=self.state.step, **facts)
            if self._last or self._chosen().place == len(self.state.curves) - 1:
                self.state.best = {k: v.clone() for k, v in module.state_dict().items()}
        if first:
            with self._as_kept({}):
                self.validator.origin = validate.statistics(module)

    def _chosen(self, *, gated: bool = True) -> select.Choice:
        # a partial target's objectives forget classes on purpose
        judged = gated and self.source_batches is not None and not self.partial
        held = self.held if judged else 0
        curves, asked, count = self.state.curves, self.settings.select, len(self.network.classes)
        return select.choose(curves, asked, partial=self.partial, held=held, classes=count)

    @property
    def _last(self) -> bool:
        """Whether the last weights are kept: asked for, or the target was not used, so it does not choose either."""
        return self.objective.needs.last or not self.target_batches

    def _choose(self) -> Fit:
        choice, warnings = None if self._last else self._chosen(), []
        weights.take(self.network.module, self.state.best)
        chosen = int(self.state.curves[choice.place]["step"]) if choice else self.state.step
        if choice and choice.collapsed:
            warnings.append(
                f"training collapsed {choice.why} ({self.stage}); rolled back to step {chosen}: "
                "try fewer steps or a smaller learning rate"
            )
        if choice and choice.place != (free := self._chosen(gated=False)).place:
            step = self.state.curves[free.place]["step"]
            warnings.append(
                f"step {chosen} is kept in place of {step:.0f}, which forgot the held-out source images ({self.stage})"
            )
        if self.run is not None:
            for warning in warnings:
                self.run.log(warning)
        by = select.chooser_of(self.settings.select, partial=self.partial) if choice else ""
        return Fit(chosen, self.state.curves, warnings, self.state.watched, by)

    def save(self) -> None:
        """Write a snapshot from which the very same weights follow; the first process does."""
        if self.run is None or processes.rank() != 0:
            return
        facts = {"step": self.state.step, "curves": self.state.curves, "metrics": self.run.metrics_position}
        facts |= {"watched": self.state.watched, "precision": self.precision.state_dict()}
        modules = {"module": self.network.module, "objective": self.objective}
        extra = {"best": self.state.best, "ema": self.state.ema, "origin": self.validator.origin}
        snapshot.write(self.run, self.stage, modules, self.optimizer, extra, facts)

    def _resume(self) -> bool:
        if self.run is None or not (path := self.run.resume_dir / self.stage).is_file():
            return False
        tensors, facts = snapshot.read(path)
        weights.take(self.network.module, snapshot.part(tensors, "module"))
        self.objective.load_state_dict(snapshot.part(tensors, "objective"))
        snapshot.restore_optimizer(self.optimizer, tensors)
        torch.set_rng_state(tensors["random"])
        self.state = State(
            int(facts["step"]),
            list(facts["curves"]),
            snapshot.part(tensors, "best"),
            {key: value.to(self.device) for key, value in snapshot.part(tensors, "ema").items()},
            list(facts["watched"]),
        )
        self.validator.origin = snapshot.part(tensors, "origin")
        self.precision.load_state_dict(facts["precision"])
        self.run.rewind_metrics(int(facts["metrics"]))
        self.run.log(f"{self.stage}: resumed at step {self.state.step}")
        return True
