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

from edgeprune import artifact, catalog, checkpoint, header, inference, skeleton
from edgeprune.commands import estimating, start, timing
from edgeprune.commands.knobs import parse
from edgeprune.data import folder
from edgeprune.data.pixels import Pixels, without
from edgeprune.errors import DataError, PlanError, UsageError, nearest
from edgeprune.methods import learning, parts
from edgeprune.methods.dalr import DALR
from edgeprune.methods.given import Given
from edgeprune.methods.job import Job
from edgeprune.methods.then import Then
from edgeprune.model import Network
from edgeprune.opening import before_fine_tuning, open_network
from edgeprune.options import PruneOptions
from edgeprune.plan import PruningPlan
from edgeprune.prune import macs
from edgeprune.prune.budget import Budget
from edgeprune.prune.ladder import RANKS
from edgeprune.run import Run

SECOND = ("dalr",)  # methods that take what another one leaves
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class PruneResult:
    """What `prune` did. Shares in 0..1; accuracies are None unless `--evaluate` was given.

    agreement: share of target images on which the slim network says what the dense one says. widths: layer -> old, new.
    padded_macs: with the channels of weights rounded up to the multiple that a device computes. latency: with a budget
    on it, what was requested, predicted and measured. channels: inside blocks, of those that can be cut.
    target_labels: how many labelled target images were learned from; they are left out of the accuracies.
    low_rank: layer that became a pair -> its inputs (of a patch), its outputs, its rank.
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
        return {**plain, **kept, "cuts": [dict(c) for c in self.cuts], "warnings": list(self.warnings)}


def prune(options: PruneOptions) -> PruneResult:
    """Cut a network to its budget and recover on unlabelled images; writes a run folder.

    With `dry_run` the first plan is made and shown, and nothing is written. Errors: any EdgePruneError; BudgetNotMet
    names the nearest budget that can be met.
    """
    target = start.required(options.target, "--target", "the folder or zip of unlabelled images to prune for")
    budget, method = _check_words(options)
    plan = _read_plan(options.plan) if options.plan else None
    if plan is not None:
        method = Given(plan, method if isinstance(method, DALR) else DALR())
    start.seed_everything(options)
    network, fresh = open_network(options.model, options)
    if fresh:
        raise UsageError("the classifier is new and untrained; adapt first, then prune the run")
    job, labelled = _job(options, network, target, budget)
    job.warnings += _unheard(options, method)
    with contextlib.ExitStack() as stack:
        if budget.timed:
            job.timing = timing.of(network, options.table, stack)
        if options.dry_run:
            return _dry(options, job, method)
        parent = _parent(options.model)
        if plan is None:
            parts.limits(job)  # a budget or schedule that makes no sense leaves no folder
        job.run = stack.enter_context(
            Run.create(
                options.output,
                command="prune",
                model=options.model,
                config=start.config(options),
                force=options.force,
                resume=options.resume,
            )
        )
        start.log_skipped(job.run, job.target, job.source, labelled, job.labelled)
        return _work(options, job, method, labelled, parent)


def _job(options: PruneOptions, network: Network, target: Path, budget: Budget) -> tuple[Job, Pixels | None]:
    """The job with its images, and those that accuracy is measured on."""
    pre, cache = network.preprocess, options.cache
    images = folder.unlabelled(target, pre, cache)
    source, labelled, few = (
        folder.labelled(root, pre, network.classes, cache) if root else None
        for root in (options.source, options.evaluate, options.labelled_target)
    )
    job = Job.of(network, (images, source), budget, options, None)
    job.labelled = few
    job.older = before_fine_tuning(network, options.pretrained, options) if options.pretrained else None
    return job, _unseen(job, labelled)


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


def _check_words(options: PruneOptions) -> tuple[Budget, Callable[[Job], None]]:
    """The budget and the method, once all that can be known of the words without torch makes sense."""
    start.check_numbers(options)
    learning.check_words(options)
    if options.precision not in PRECISIONS:
        raise UsageError(f"--for {options.precision}: {nearest(options.precision, PRECISIONS)}")
    budget = Budget.parse(
        macs=options.macs, params=options.params, channels=options.channels, latency=options.latency
    )
    if budget.empty and options.plan is None:
        raise UsageError(
            "no budget: say what to keep, such as --macs 0.5, --params 1.2M, --channels 0.4 or --latency 0.7x"
        )
    if not budget.empty and options.plan is not None:
        raise UsageError(f"--plan {options.plan} says what is kept, and so does {budget}: give one of them")
    if options.rank not in RANKS:
        raise UsageError(f"--rank {options.rank}: {nearest(options.rank, RANKS)}")
    if options.table and not budget.timed:
        raise UsageError(f"--table {options.table}: goes with a latency budget, such as --latency 0.7x")
    if "source" in catalog.entry(catalog.SCORES, options.score, "score").needs and options.source is None:
        raise UsageError(
            f"--score {options.score} needs labelled source images: give --source DIR, or --score measured"
        )
    if "source" in catalog.entry(catalog.METHODS, options.method, "method").needs and options.source is None:
        raise UsageError(
            f"--method {options.method} learns from labelled source images: give --source DIR, "
            "or take --method distill"
        )
    if options.labelled_target and "labelled-target" not in catalog.METHODS[options.method].uses:
        able = ", ".join(n for n, e in catalog.METHODS.items() if "labelled-target" in e.uses)
        raise UsageError(
            f"--labelled-target {options.labelled_target}: --method {options.method} learns from no target label; "
            f"leave it out, or take --method {able}"
        )
    if options.labelled_target and options.plan:
        raise UsageError(
            f"--labelled-target {options.labelled_target}: after --plan the recovery is label-free; leave one out"
        )
    if options.objective != "none":
        learning.kind_of(options.objective, source=options.source is not None)
    return budget, _method(options, budget)


def _method(options: PruneOptions, budget: Budget) -> Callable[[Job], None]:
    """What --method, --set and --then say; a knob of the second begins with its name, as in dalr.form=svd."""
    second = f"{options.then}."
    of_second = tuple(word.removeprefix(second) for word in options.set if word.startswith(second))
    kind = catalog.load(catalog.METHODS, options.method, "method")
    words = [word for word in options.set if not (options.then and word.startswith(second))]
    method: Callable[[Job], None] = kind(**parse(kind, words, options.method))
    if options.then is None:
        return method
    if options.then not in SECOND:
        raise UsageError(f"--then {options.then}: {nearest(options.then, SECOND)}")
    if options.method == options.then:
        raise UsageError(
            f"--then {options.then}: --method is the same; give one that cuts channels, such as auto"
        )
    if options.plan is not None:
        raise UsageError(
            f"--then {options.then}: a plan says itself which layers become low-rank; leave it out"
        )
    if budget.timed or set(budget.given) - {"macs", "params"}:
        raise UsageError(f"--then {options.then} takes --macs or --params; received a budget of {budget}")
    after = catalog.load(catalog.METHODS, options.then, "method")
    return Then(method, after(**parse(after, of_second, options.then)), options.then_share)


def _unheard(options: PruneOptions, method: Callable[[Job], None]) -> list[str]:
    """A warning for each option that was said and that the method does not look at."""
    usual, flags = PruneOptions(), {"iterations": "steps"}
    takes = "source" in catalog.METHODS[options.method].needs | catalog.SCORES[options.score].needs
    if options.source and not takes and options.objective == "none" and options.method != "adapt-then-prune":
        alone = [
            f"--source {options.source}: --method {options.method} learns from the target; --objective NAME adapts on"
        ]
    else:
        alone = []
    return alone + [
        f"--{flags.get(name, name)} {getattr(options, name)}: --method {options.method} does not look at it: {instead}"
        for name, instead in getattr(method, "ignores", {}).items()
        if getattr(options, name) != getattr(usual, name)
    ]


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
        job.timing = timing.with_table(job)
    method(job)
    after = inference.evaluate(job.network, labelled) if labelled else None
    result = _result(options, job, (before, after))
    said = estimating.after_cutting(history, result.agreement or 0.0, len(job.probe))
    result = replace(result, estimate=said)
    _finish(options, job, result, parent)
    return result


def _parent(word: str) -> str | None:
    path = Path(word)
    return artifact.sha256(header.locate(path)) if path.exists() else None


def _read_plan(path: Path) -> PruningPlan:
    try:
        return PruningPlan.from_json(json.loads(path.read_text()))
    except (OSError, ValueError) as err:
        raise PlanError(
            f"--plan {path}: cannot be read ({err}); expected what a run's plan.json holds"
        ) from err
    except PlanError as err:
        raise PlanError(f"--plan {path}: {err}") from err


def _dry(options: PruneOptions, job: Job, method: Callable[[Job], None]) -> PruneResult:
    """The given plan, or the method's without what it learns."""
    if job.budget.timed:
        job.timing = timing.with_table(job)
    parts.preview(job, method)
    own = getattr(method, "cuts", 1)
    if options.iterations is None and options.plan is None and own > 1:
        job.warnings.append(
            f"shown is one cut; the run makes {own} and trains in between, so other channels may go (--steps)"
        )
    return _result(options, job, (None, None))


def _result(options: PruneOptions, job: Job, accuracy: tuple[float | None, float | None]) -> PruneResult:
    example = job.network.example()
    job.warnings += [*parts.unfilled(job), *start.unread(job.target, "--target")]
    now, params = macs.measure(job.network.module, example)
    was, dense_params = macs.measure(job.dense, example)
    run = job.run.path if job.run else None
    return PruneResult(
        run,
        "+".join(filter(None, (options.method, options.then))),
        now,
        was,
        params,
        dense_params,
        str(job.budget) if not job.budget.empty else f"plan {options.plan}",
        parts.agreement(job),
        *accuracy,
        widths(job.dense, job.network),
        tuple(job.trace),
        start.words("edgeprune", "export", run) if run else None,
        tuple(job.warnings),
        macs.padded(job.network.module, example, options.width_multiple),
        timing.outcome(job) if job.budget.timed else None,
        *job.channels,
        len(job.labelled) if job.labelled is not None else None,
        low_rank(job.network),
    )


def widths(dense: Any, network: Network) -> dict[str, tuple[int, int]]:
    """Layer -> (outputs before, outputs now) for every weight whose first axis became shorter, a pair by its second."""
    old = {name: tuple(tensor.shape) for name, tensor in dense.state_dict().items()}
    new = {name: tuple(tensor.shape) for name, tensor in network.module.state_dict().items()}
    new |= {f"{name}.weight": new[f"{name}.1.weight"] for name in skeleton.pairs(network.module)}
    return {
        name.removesuffix(".weight"): (old[name][0], shape[0])
        for name, shape in new.items()
        if name.endswith(".weight") and len(shape) > 1 and name in old and old[name][0] != shape[0]
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
        "prune", options, method=options.method, parent=parent, metrics=result.to_json()
    )
    job.network.history.append(entry)
    if (plan := parts.whole_plan(job)) is not None:
        job.run.write("plan.json", json.dumps(plan.to_json(), indent=1).encode())
    job.run.write("model.safetensors", checkpoint.dumps(job.network))
    job.run.finish(result.to_json())
