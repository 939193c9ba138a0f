"""The parts that every method is a schedule of: score, cut, re-estimate, learn, recover.

A cut that was made is kept in the run's resume folder, and training keeps its own snapshots, so a run that was killed
goes on with the part it was in.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune import checkpoint, progress, train
from edgeprune.errors import BudgetNotMet, RunError, UsageError
from edgeprune.methods import hints, latency_plan, learning, recalibrate
from edgeprune.methods.job import Job, find
from edgeprune.objectives.imitate import Imitate
from edgeprune.objectives.together import Together
from edgeprune.options import PruneOptions
from edgeprune.plan import PruningPlan
from edgeprune.prune import budget as budgets
from edgeprune.prune import macs, schedule, surgery
from edgeprune.prune import score as scores
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Rules
from edgeprune.prune.search import LATENCY
from edgeprune.waist import Objective

FOR_RESUMING = ("steps_before", "owed_before")  # what a cut of the trace has for a resumed process alone


def agreement(job: Job) -> float:
    """Share of target images, in 0..1, on which the network says what the dense one says; it bounds the loss."""
    return job.agreement(job.network.module)


def as_if(job: Job, **options: Any) -> Job:
    """The same job (network, trace, run and what is known of the dense network shared) with other options."""
    other = copy.copy(job)
    other.options = replace(job.options, **options)
    return other


def couplings(job: Job) -> Couplings:
    """What can be cut in the network as it stands, without what the user keeps."""
    if not job.plans:
        return job.dense_couplings
    return find(job.network.module, job.network.example(), job.options, job.dense_couplings)


def score(job: Job, found: Couplings) -> Mapping[str, Tensor]:
    """Scores (C,) of every coupling by the chosen criterion, larger = keep."""
    network = job.network
    images, how = (network.preprocess, job.target, job.source), (job.options.seed, job.score_knobs)
    return scores.of(job.options.score, network.module, found, *images, *how)


def limits(job: Job) -> list[dict[str, float]]:
    """Absolute ceilings for each of the cuts that the options ask for; the last is the budget itself."""
    costs = job.dense_costs
    dense = {kind: float(getattr(costs, kind)(costs.full)) for kind in ("macs", "params", "channels")}
    if job.budget.timed:
        dense[LATENCY] = job.dense_ms
    final = job.budget.limits(dense)
    _require_counted(final, dense)
    steps, kind = job.cuts, job.options.schedule or "cubic"
    shares = {k: schedule.fractions(min(1.0, v / dense[k]), steps, kind) for k, v in final.items()}
    return [{k: shares[k][i] * dense[k] for k in final} for i in range(steps - 1)] + [final]


def _require_counted(ceilings: Mapping[str, float], dense: Mapping[str, float]) -> None:
    for kind in ceilings:
        if not dense[kind]:
            raise UsageError(
                f"--{kind}: the network has none that can be cut; `edgeprune inspect MODEL --prunable` says why, "
                "--macs counts streams between blocks too"
            )


Criterion = Callable[[Job, Couplings], Mapping[str, Tensor]]
Chooser = Callable[[Job, Couplings, Mapping[str, Tensor], Mapping[str, float]], PruningPlan]


def cut(
    job: Job,
    ceilings: Mapping[str, float],
    number: int = 1,
    criterion: Criterion = score,
    choose: Chooser | None = None,
) -> PruningPlan:
    """Score by `criterion` (root -> (C,), larger = keep), plan within absolute `ceilings`, cut, re-estimate statistics.

    number: of this cut, from 1. choose: makes the plan of couplings, scores and ceilings in place of `plan_within`.
    What was done is added to the trace, and kept for resuming: a cut that an earlier process made is taken up.
    """
    if (again := taken_up(job, number)) is not None:
        return again
    found = couplings(job)
    if not job.plans:
        require_possible(job)
    with progress.doing(f"cut {number}: finding what goes"), looking(job):
        scores = criterion(job, found)
    # may train, and be taken up from a killed process
    plan = (choose or plan_within)(job, found, scores, ceilings)
    then = ", then batch-norm" * job.options.bn_recal
    with progress.doing(f"cut {number}: removing it{then}"), looking(job):
        apply(job, plan, found, number)
    return plan


@contextmanager
def looking(job: Job) -> Iterator[None]:
    """Add the images that the student is shown inside the block, but for those that train it, to `job.looked`."""

    def count(module: nn.Module, given: tuple[Any, ...]) -> None:
        job.looked += len(given[0]) if given and not module.training else 0

    hook = job.network.module.register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


def preview(job: Job, method: Callable[[Job], None]) -> None:
    """What --dry-run shows of a method: its own preview, else its cuts without training, one unless --steps says more.

    What a method finds out while it learns (the masks of admp, the gradients of swmmd) is not there yet: --score ranks.
    """
    own = getattr(method, "preview", None)
    if own is not None:
        own(job)
    else:
        method(as_if(job, iterations=job.options.iterations or 1))


def cuts_in(job: Job, method: Callable[[Job], None]) -> int:
    """How many cuts a run of the method makes of the job: by its own reckoning, else by --steps or its `cuts`."""
    own: Callable[[Job], int] | None = getattr(method, "cuts_in", None)
    if own is not None:
        return own(job)
    usual: int = getattr(method, "cuts", 1)
    return job.options.iterations or usual


def plan_within(
    job: Job, found: Couplings, scores: Mapping[str, Tensor], ceilings: Mapping[str, float]
) -> PruningPlan:
    """The plan for absolute `ceilings`; one on latency is met as measured, where the device is here.

    BudgetNotMet names the options that stand in the way, too.
    """
    with _remedies(job.options):
        return _plan_within(job, found, scores, ceilings)


def require_possible(job: Job) -> None:
    """BudgetNotMet before the first of several cuts when the last is out of reach; of latency only plans can tell."""
    last = {kind: ceiling for kind, ceiling in limits(job)[-1].items() if kind != LATENCY}
    rules = Rules(job.options.width_multiple, job.options.floor)
    with _remedies(job.options):
        if last:
            budgets.require_possible(job.dense_costs, job.dense_couplings, last, rules)


@contextmanager
def _remedies(options: PruneOptions) -> Iterator[None]:
    try:
        yield
    except BudgetNotMet as err:
        raise BudgetNotMet(f"{err}, or {_remedy(options)}") from err


def _remedy(options: PruneOptions) -> str:
    found = ["free layers named by --keep"] if (*options.keep, *options.keep_out, *options.keep_in) else []
    if options.width_multiple > 1:
        why = " (--for int8 cuts in runs of 32)" if options.precision == "int8" else ""
        found.append(f"lower --multiple from {options.width_multiple}{why}")
    if options.floor > 0:
        found.append(f"lower --floor from {options.floor:g}")
    return " or ".join([*found, "take a network with more channels to spare"])


def _plan_within(
    job: Job, found: Couplings, scores: Mapping[str, Tensor], ceilings: Mapping[str, float]
) -> PruningPlan:
    options = job.options
    rules = Rules(options.width_multiple, options.floor, options.rank, job.dense_widths)
    if LATENCY in ceilings:
        return latency_plan.choose(job, found, scores, ceilings, rules)
    costs = macs.trace(job.network.module, job.network.example(), found)
    return budgets.choose(costs, found, scores, ceilings, rules)


def apply(job: Job, plan: PruningPlan, found: Couplings, number: int = 1) -> None:
    """Cut the network by a plan, re-estimate batch-norm, and record agreement with the dense network around it."""
    twin = recalibrate.twin(job)
    surgery.apply(job.network.module, plan, found)
    if twin is not None:
        surgery.apply(twin, plan, found)
    record(job, plan, number, twin)


def record(job: Job, plan: PruningPlan, number: int, twin: nn.Module | None = None) -> None:
    """After surgery by `plan`: re-estimate batch-norm, add to the trace, keep the network for resuming.

    twin: as `recalibrate` makes it before surgery, with the channels that are left.
    """
    resuming = {"steps_before": sum(job.steps), "owed_before": dict(job.owed)}
    entry: dict[str, Any] = {"cut": number, **resuming}
    entry["agreement_after_cut"] = agreement(job)
    if job.options.bn_recal:
        recalibrate.after(job, job.network.module, twin)
        entry["agreement_after_batchnorm"] = agreement(job)
    entry["macs"], entry["params"] = macs.measure(job.network.module, job.network.example())
    if (timed := plan.why.get("latency")) is not None:
        entry["latency_ms"], entry["latency_of_requested"] = (
            timed["measured_ms"],
            timed["measured_of_requested"],
        )
    entry["images_looked_at"], job.looked = job.looked, 0
    if not job.trace:
        entry |= job.before
    job.trace.append(entry)
    _remember(job, plan)
    if job.run:
        job.run.metric(stage="cut", step=number, **entry)
        job.run.log(f"cut {number}: {json.dumps(entry)}")
        job.network.history.append({"command": "cut", "plan": plan.to_json(), "trace": entry})
        job.run.resume_dir.mkdir(exist_ok=True)
        job.run.write(f"resume/cut-{number}.safetensors", checkpoint.dumps(job.network))


def _remember(job: Job, plan: PruningPlan) -> None:
    job.plans.append(plan)
    for one in plan.cuts:
        before = job.kept.get(one.root, list(range(one.width)))
        job.kept[one.root] = [before[i] for i in one.keep]


def taken_up(job: Job, number: int) -> PruningPlan | None:
    """The plan of a cut that an earlier process made, with the network as it was after it."""
    file = job.run.resume_dir / f"cut-{number}.safetensors" if job.run else None
    if file is None or not file.is_file():
        return None
    with torch.random.fork_rng(devices=[]):  # a process that was not interrupted draws no weights here
        before = checkpoint.read(file, [job.network.spec])
    job.network.module, job.network.history = before.module, before.history
    entry = before.history[-1]
    if entry["trace"]["cut"] != number:  # they were counted from 0 once
        raise RunError(
            f"{file.parent.parent}: was begun by an earlier version, which counted its cuts otherwise; "
            "begin again with --force"
        )
    plan = PruningPlan.from_json(entry["plan"])
    _remember(job, plan)
    job.trace.append(entry["trace"])  # the same as in the history, which what follows is added to
    job.owed.update(entry["trace"]["owed_before"])
    job.steps[:] = [entry["trace"]["steps_before"]]  # stages on the way to a cut are not gone through again
    return plan


def decided(job: Job, name: str, find: Callable[[], Any]) -> Any:
    """What `find` finds, JSON values; a process that resumes takes up what the first one found.

    For what is measured on the way and must not change under a stage that was begun.
    """
    file = job.run.resume_dir / f"{name}.json" if job.run else None
    if file is not None and file.is_file():
        return json.loads(file.read_text())
    text = json.dumps(find())
    if job.run is not None:
        job.run.write(f"resume/{name}.json", text.encode())
    return json.loads(text)


def learn(
    job: Job,
    objective: Objective,
    steps: int,
    stage: str,
    *,
    teacher: nn.Module | None = None,
    validations: int = 3,
) -> train.Fit:
    """Train the student on an objective as the options say; `stage` names this part of the run for resuming.

    teacher: whose logits the objective is given, the dense network by default.
    """
    recalibrate.keep_statistics(job, objective)
    # with fixed statistics nothing evens out what large steps do to a layer's scale
    frozen = objective.needs.frozen_statistics
    settings = learning.settings(job.options, steps, validations, gentle=frozen)
    if frozen and settings.lr > learning.RECOVERY_LR:
        said = (
            f"--lr {settings.lr:g}: batch-norm statistics stand still while this learns, so large steps may ruin the "
            f"network; {learning.GENTLE_RECOVERY_LR:g} is usual"
        )
        job.warnings += [said] * (said not in job.warnings)
    begun = sum(job.steps)
    job.steps.append(steps)
    result = train.fit(
        job.network,
        objective,
        job.target,
        job.source,
        settings,
        run=job.run,
        teacher=teacher if teacher is not None else job.dense,
        stage=stage,
        watch=job.watch,
        begun=begun,
        told=job.told(),
    )
    job.warnings.extend(result.warnings)
    return result


def chosen_objective(job: Job, layers: float = 0.0) -> Objective:
    """Distillation from the dense network, beside the adaptation objective of the options if there is one.

    layers: weight of the error on the channels that both networks have, inside the network; 0 looks at answers alone.
    """
    example = job.network.example(1).to(next(job.dense.parameters()).device)
    shared = (job.dense, example, job.network.classifier, job.dense_couplings, job.kept)
    kept = hints.shared_channels(*shared) if layers else {}
    distil = Imitate(learning.task(job.network), kept, Imitate.Knobs(weight=layers))
    if job.options.objective == "none":
        return distil
    return Together([(1.0, distil), (1.0, adapting(job, job.options.objective))])


def adapting(job: Job, name: str) -> Objective:
    """The adaptation objective `name` for the network as it stands; partial where the job is and it can be."""
    kind = learning.kind_of(name, source=job.source is not None)
    can = job.partial and "partial" in {knob.name for knob in fields(kind.Knobs)}
    knobs = {"partial": True, **job.knobs} if can else job.knobs
    return learning.knowing(kind, job.network, (job.target, job.source), knobs, job.older)
