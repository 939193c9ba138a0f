"""`edgeprune prune`: an adapted model and unlabelled target images -> a slim network that still says the same on them.

Budgets are ceilings: what was reached is printed beside what was asked for, and exit code 3 names the nearest.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeprune import artifact, checkpoint, header, inference, skeleton
from edgeprune.commands import estimating, prune_words, start, timing
from edgeprune.data import folder
from edgeprune.data.pixels import Pixels, without
from edgeprune.errors import DataError, UsageError
from edgeprune.methods import dalr, learning, outcome, parts
from edgeprune.methods.dalr import DALR, require_clock
from edgeprune.methods.given import Given
from edgeprune.methods.job import Job
from edgeprune.methods.then import Then
from edgeprune.model import Network
from edgeprune.opening import before_fine_tuning, open_network
from edgeprune.options import PruneOptions
from edgeprune.plan import PruningPlan
from edgeprune.prune import macs, surgery
from edgeprune.prune.budget import Budget
from edgeprune.prune.latency import Timing
from edgeprune.run import Run


@dataclass(frozen=True)
class PruneResult:
    """What `prune` did. Shares in 0..1; accuracies are None unless `--evaluate` was given.

    agreement: share of target images on which the slim network says what the dense one says. widths: layer -> old, new.
    padded_macs: with the channels of weights rounded up to the multiple that a device computes. latency: with a budget
    on it, what was requested, predicted and measured. channels: inside blocks, of those that can be cut.
    target_labels: how many labelled target images were learned from; they are left out of the accuracies.
    low_rank: layer that became a pair -> its inputs (of a patch), its outputs, its rank. partial: the target was taken
    to lack classes. trained_images: that the student learned from after the first cut, source and target and every view
    together; of a dry run, about how many they would be.
    """

    run: Path | None
    method: str
    macs: int
    dense_macs: int
    params: int
    dense_params: int
    requested: str
    agreement: float | None
    accuracy_before: float | None
    accuracy: float | None
    widths: Mapping[str, tuple[int, int]]
    cuts: tuple[Mapping[str, Any], ...]
    next: str | None
    warnings: tuple[str, ...]
    padded_macs: int | None = None
    latency: Mapping[str, Any] | None = None
    channels: int | None = None
    dense_channels: int | None = None
    target_labels: int | None = None
    low_rank: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    estimate: Mapping[str, Any] | None = None
    partial: bool = False
    trained_images: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = [{"layer": name, "before": old, "after": new} for name, (old, new) in self.widths.items()]
        pairs = [
            {"layer": name, "inputs": n, "outputs": m, "rank": k} for name, (n, m, k) in self.low_rank.items()
        ]
        kept = {"macs_kept": self.macs / self.dense_macs, "params_kept": self.params / self.dense_params}
        plain = {
            **asdict(self),
            "run": str(self.run) if self.run else None,
            "widths": rows,
            "low_rank": pairs,
        }
        cuts = [{k: v for k, v in cut.items() if k not in parts.FOR_RESUMING} for cut in self.cuts]
        return {**plain, **kept, "cuts": cuts, "warnings": list(self.warnings)}


def prune(options: PruneOptions) -> PruneResult:
    """Cut a network to its budget and recover on unlabelled images; writes a run folder.

    With `dry_run` the first plan is made and shown, and nothing is written. Errors: any EdgePruneError; BudgetNotMet
    names the nearest budget that can be met.
    """
    target = start.required(options.target, "--target", "the folder or zip of unlabelled images to prune for")
    budget, method = prune_words.check(options)
    plan = prune_words.read_plan(options.plan) if options.plan else None
    if plan is not None:
        method = Given(plan, method if isinstance(method, DALR) else DALR(), method)
    knobs = prune_words.of_objective(options, method)
    of_score = prune_words.of_score(options, method)
    start.training(options)
    job, labelled = _job(options, target, budget)
    job.knobs, job.score_knobs = knobs, of_score
    job.partial = _lacks_classes(job, method)
    job.warnings += prune_words.unheard(options, method)
    if job.moves_statistics and knobs.get("statistics") == "live":
        job.warnings.append("--set objective.statistics=live: has no effect on a target that lacks classes")
    with contextlib.ExitStack() as stack:
        if budget.timed:
            job.timing = timing.of(job.network, options.table, stack)
            if isinstance(method, (DALR, Then)):
                require_clock(job)
        job.warnings += prune_words.of_several_cuts(job, method)  # how many there are may depend on the time
        if options.dry_run:
            return _dry(options, job, method)
        parent = _parent(options.model)
        _require(job, plan, method)
        config, how = start.config(options), {"force": options.force, "resume": options.resume}
        opened = Run.create(options.output, command="prune", model=options.model, config=config, **how)
        job.run = stack.enter_context(opened)
        start.log_skipped(job.run, job.target, job.source, labelled, job.labelled)
        job.warnings += start.begun_anew(options, job.run)
        if job.partial:
            job.run.log("the target is taken to lack classes")
        return _work(options, job, method, labelled, parent)


def _require(job: Job, plan: PruningPlan | None, method: Callable[[Job], None]) -> None:
    """Refuse what can be known not to work before there is a folder, or one that --force replaces is lost."""
    if plan is not None:
        surgery.require(plan, job.dense_couplings)
        dalr.check(job.network.module, job.network.classifier, plan.low_rank)
        return
    parts.limits(job)
    if isinstance(method, Then):
        parts.require_possible(method.on_the_way(job))
    elif not isinstance(method, DALR):
        parts.require_possible(job)


def _job(options: PruneOptions, target: Path, budget: Budget) -> tuple[Job, Pixels | None]:
    """The job with its network and images, and the images that accuracy is measured on."""
    network, fresh = open_network(options.model, options)
    if fresh:
        raise UsageError(
            f"--classes {options.classes}: the classifier is new and untrained; adapt first, then prune the run "
            "(a run has its classes: leave --classes out)"
        )
    pre, cache = network.preprocess, options.cache
    images = folder.unlabelled(target, pre, cache)
    labelled = start.evaluated(options.evaluate, network, cache) if options.evaluate else None
    known = (pre, network.classes, cache)
    source, few = (
        folder.labelled(root, *known, dropped=network.dropped) if root else None
        for root in (options.source, options.labelled_target)
    )
    job = Job.of(network, (images, source), budget, options, None)
    job.labelled = few
    job.warnings += filter(None, [start.untaught(options)])
    job.warnings += start.without_dropped(network, options.source) + start.lacking(network, source)
    job.warnings += start.without_dropped(network, options.labelled_target, "--labelled-target")
    job.warnings += start.never_right(labelled)
    job.older = before_fine_tuning(network, options.pretrained, options) if options.pretrained else None
    return job, _unseen(job, labelled)


def _lacks_classes(job: Job, method: Callable[[Job], None]) -> bool:
    """Whether the target is taken to lack classes: by the method, its objective, or what made the network."""
    if "partial" in job.knobs:
        return bool(job.knobs["partial"])
    name = job.options.objective
    unheard = name == "none" or "objective" in getattr(method, "ignores", {})
    kind = None if unheard else learning.kind_of(name, source=job.source is not None)
    if getattr(method, "partial", False) or (kind is not None and kind.partial):
        return True
    before = [entry for entry in job.network.history if "partial" in entry]
    return bool(before and before[-1]["partial"])


def _unseen(job: Job, labelled: Pixels | None) -> Pixels | None:
    """The images of --evaluate that --labelled-target does not have; DataError when none is left."""
    if labelled is None or job.labelled is None:
        return labelled
    rest = without(labelled, job.labelled)
    if not len(rest):
        raise DataError(
            f"--evaluate {job.options.evaluate}: all {len(labelled)} images are among --labelled-target "
            f"{job.options.labelled_target}; give others to measure accuracy on"
        )
    if left_out := len(labelled) - len(rest):
        job.warnings.append(
            f"{left_out} of the {len(labelled)} images of --evaluate are among --labelled-target; "
            "accuracy is of the others"
        )
    return rest


def _work(
    options: PruneOptions,
    job: Job,
    method: Callable[[Job], None],
    labelled: Pixels | None,
    parent: str | None,
) -> PruneResult:
    dense = copy.copy(job.network)
    dense.module = job.dense
    job.watch = labelled
    history = list(job.network.history)
    before = inference.evaluate(dense, labelled) if labelled else None
    if job.budget.timed:
        job.timing = timing.as_begun(job)
        job.timing = _with_table(job, method)
    method(job)
    bare = sum(not cut.get("images") for cut in job.trace)
    # a plan's channels and its pairs go one right after the other
    if options.recover and options.between and not options.plan and 0 < bare < len(job.trace):
        job.warnings.append(
            f"nothing was trained after {bare} of {len(job.trace)} cuts: passes there are less than a step of --batch "
            f"{options.batch} images; give more images, a larger --recover or fewer cuts (--steps)"
        )
    if options.recover and bare == len(job.trace):
        job.warnings.append(
            f"--recover {options.recover:g}: nothing was trained after the cut, it is less than a step of --batch "
            f"{options.batch} images; give more images, a larger --recover or a smaller --batch"
        )
    after = inference.evaluate(job.network, labelled) if labelled else None
    result = _result(options, job, (before, after))
    said = estimating.after_cutting(history, result.agreement or 0.0, len(job.probe))
    result = replace(result, estimate=said)
    _finish(options, job, result, parent)
    return result


def _with_table(job: Job, method: Callable[[Job], None]) -> Timing:
    """The job's timing with a layer table, but for the method that times its pairs by itself."""
    return job.timing if isinstance(method, DALR) else timing.with_table(job)


def _parent(word: str) -> str | None:
    path = Path(word)
    return artifact.sha256(header.locate(path)) if path.exists() else None


def _dry(options: PruneOptions, job: Job, method: Callable[[Job], None]) -> PruneResult:
    """The given plan, or the method's without what it learns."""
    if job.budget.timed:
        job.timing = _with_table(job, method)
    parts.preview(job, method)
    job.warnings += prune_words.unlike_the_run(job, method)
    images = prune_words.images_to_come(job, method)
    return replace(_result(options, job, (None, None)), trained_images=images)


def _result(options: PruneOptions, job: Job, accuracy: tuple[float | None, float | None]) -> PruneResult:
    example = job.network.example()
    job.warnings += [*outcome.unfilled(job), *start.unread(job.target, "--target")]
    now, params = macs.measure(job.network.module, example)
    job.warnings += outcome.exceeded(job, {"macs": now, "params": params})
    job.warnings += prune_words.unlike_the_words(options, job, widths(job.dense, job.network))
    measured = timing.outcome(job) if job.budget.timed else None
    planned = job.trace[-1].get("latency_of_requested") if job.trace else None
    job.warnings += timing.outside(measured or {}, planned)
    was, dense_params = macs.measure(job.dense, example)
    run = job.run.path if job.run else None
    before, after = accuracy
    channels, dense_channels = job.channels
    return PruneResult(
        run=run,
        method=_name(options),
        macs=now,
        dense_macs=was,
        params=params,
        dense_params=dense_params,
        requested=str(job.budget) if not job.budget.empty else f"plan {options.plan}",
        agreement=parts.agreement(job),
        accuracy_before=before,
        accuracy=after,
        widths=widths(job.dense, job.network),
        cuts=tuple(job.trace),
        next=start.words("edgeprune", "export", run, *start.trusted(job.network)) if run else None,
        warnings=tuple(job.warnings),
        padded_macs=macs.padded(job.network.module, example, options.width_multiple),
        latency=measured,
        channels=channels,
        dense_channels=dense_channels,
        target_labels=len(job.labelled) if job.labelled is not None else None,
        low_rank=low_rank(job.network),
        partial=job.partial,
        trained_images=sum(cut.get("images", 0) for cut in job.trace),
    )


def _name(options: PruneOptions) -> str:
    """What a result calls the method."""
    return "plan" if options.plan else "+".join(filter(None, (options.method, options.then)))


def widths(dense: Any, network: Network) -> dict[str, tuple[int, int]]:
    """Layer -> (outputs before, outputs now) for every weight whose first axis became shorter, a pair by its second."""
    old = {name: tuple(tensor.shape) for name, tensor in dense.state_dict().items()}
    new = {name: tuple(tensor.shape) for name, tensor in network.module.state_dict().items()}
    new |= {f"{name}.weight": new[f"{name}.1.weight"] for name in skeleton.pairs(network.module)}
    return {
        name.removesuffix(".weight"): (old[name][0], shape[0])
        for name, shape in new.items()
        if name.endswith("weight") and len(shape) > 1 and name in old and old[name][0] != shape[0]
    }


def low_rank(network: Network) -> dict[str, tuple[int, int, int]]:
    """Layer that became a pair -> values of an input (a patch's, for a convolution), of an output, and its rank."""
    found = {}
    for name, (rank, _) in skeleton.pairs(network.module).items():
        pair = network.module.get_submodule(name)
        first, second = pair.get_parameter("0.weight"), pair.get_parameter("1.weight")
        found[name] = (first[0].numel(), len(second), rank)
    return found


def _finish(options: PruneOptions, job: Job, result: PruneResult, parent: str | None) -> None:
    assert job.run is not None
    entry = start.history_entry(
        "prune", options, method=_name(options), parent=parent, partial=job.partial, metrics=result.to_json()
    )
    job.network.history.append(entry)
    if (plan := outcome.whole_plan(job)) is not None:
        job.run.write("plan.json", json.dumps(plan.to_json(), indent=1).encode())
    job.run.write("model.safetensors", checkpoint.dumps(job.network))
    job.run.finish(result.to_json())
