"""What the words of `edgeprune prune` say, before a network is opened: budget, method, knobs; and what goes unheard."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeprune import catalog
from edgeprune.commands import start
from edgeprune.commands.knobs import parse
from edgeprune.errors import PlanError, UsageError, nearest
from edgeprune.methods import learning, parts
from edgeprune.methods.job import Job
from edgeprune.methods.then import Then
from edgeprune.options import PruneOptions
from edgeprune.plan import PruningPlan
from edgeprune.prune import schedule
from edgeprune.prune.budget import Budget
from edgeprune.prune.ladder import RANKS

SECOND = ("dalr",)  # methods that take what another one leaves
PRECISIONS = ("fp32", "fp16", "int8")
OF_OBJECTIVE = "objective."  # how a knob of the objective begins
OF_SCORE = "score."  # how a knob of the criterion begins


def check(options: PruneOptions) -> tuple[Budget, Callable[[Job], None]]:
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
    if options.schedule is not None:
        schedule.require(options.schedule)
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
    """What --method, --set and --then say; a knob of the second begins with its name, as in dalr.form=svd, and one of
    the objective with "objective.", one of the criterion with "score.".
    """
    second = f"{options.then}."
    of_second = tuple(word.removeprefix(second) for word in options.set if word.startswith(second))
    kind = catalog.load(catalog.METHODS, options.method, "method")
    others = (OF_OBJECTIVE, OF_SCORE, *((second,) if options.then else ()))
    words = [word for word in options.set if not word.startswith(others)]
    method: Callable[[Job], None] = kind(**parse(kind, words, options.method))
    if options.then is None:
        if options.method in SECOND and "channels" in budget.given:
            raise UsageError(
                f"--method {options.method} takes --macs, --params or --latency; received a budget of {budget}"
            )
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
    if options.labelled_target is not None:
        raise UsageError(
            f"--then {options.then}: its recovery learns from the dense network alone, which never saw "
            f"--labelled-target {options.labelled_target}; leave one of the two out"
        )
    if set(budget.given) - {"macs", "params"}:
        raise UsageError(
            f"--then {options.then} takes --macs, --params or --latency; received a budget of {budget}"
        )
    after = catalog.load(catalog.METHODS, options.then, "method")
    return Then(method, after(**parse(after, of_second, options.then)), options.then_share)


def unheard(options: PruneOptions, method: Callable[[Job], None]) -> list[str]:
    """A warning for each option and each knob that was said and that the method does not look at."""
    usual, flags = PruneOptions(), {"iterations": "steps"}
    who = f"--plan {options.plan}" if options.plan else f"--method {options.method}"
    idle: dict[str, str] = {}
    if options.iterations is not None:
        idle |= dict.fromkeys(
            ("cuts", "remove"), f"has no effect: --steps {options.iterations} says how many cuts"
        )
    idle |= getattr(method, "idle", lambda options: {})(options)
    takes = "source" in catalog.METHODS[options.method].needs | catalog.SCORES[options.score].needs
    if options.source and not takes and options.objective == "none" and options.method != "adapt-then-prune":
        alone = [
            f"--source {options.source} is not used: {who} learns from the target; an --objective may use it"
        ]
    else:
        alone = []
    return (
        alone
        + [
            f"--{flags.get(name, name)} {getattr(options, name)}: {who} does not look at it: {instead}"
            for name, instead in getattr(method, "ignores", {}).items()
            if getattr(options, name) != getattr(usual, name)
        ]
        + [
            f"--set {word}: {why}"
            for name, why in idle.items()
            for word in options.set
            if word.startswith(f"{name}=")
        ]
    )


def of_objective(options: PruneOptions, method: Callable[[Job], None]) -> dict[str, Any]:
    """Knobs of the objective that goes on while recovering: `--set objective.NAME=value`, typed.

    UsageError when no objective does, when it has no such knob (with the nearest), or for a value that makes no sense.
    """
    words = [word for word in options.set if word.startswith(OF_OBJECTIVE)]
    if not words:
        return {}
    if instead := getattr(method, "ignores", {}).get("objective"):
        raise UsageError(f"--set {words[0]}: --method {options.method} looks at no objective: {instead}")
    usual = getattr(method, "usual_objective", None)
    name = usual if options.objective == "none" else options.objective
    if name is None:
        raise UsageError(f"--set {words[0]}: no objective goes on while recovering; give --objective NAME")
    kind = learning.kind_of(name, source=options.source is not None)
    found = parse(kind.Knobs, [word.removeprefix(OF_OBJECTIVE) for word in words], name)
    kind.Knobs(**found)  # refuses values that make no sense
    return found


def of_score(options: PruneOptions, method: Callable[[Job], None]) -> dict[str, Any]:
    """Knobs of the criterion: `--set score.NAME=value`, typed.

    UsageError when the method ranks by its own, when it has no such knob (with the nearest), or for a value that makes
    no sense.
    """
    words = [word for word in options.set if word.startswith(OF_SCORE)]
    if words and (instead := getattr(method, "ignores", {}).get("score")):
        raise UsageError(f"--set {words[0]}: --method {options.method} does not look at --score: {instead}")
    kind = catalog.load(catalog.SCORES, options.score, "score")
    return parse(kind, [word.removeprefix(OF_SCORE) for word in words], f"score {options.score}")


def read_plan(path: Path) -> PruningPlan:
    """What a run's plan.json holds; PlanError when it cannot be read."""
    try:
        return PruningPlan.from_json(json.loads(path.read_text()))
    except (OSError, ValueError) as err:
        raise PlanError(
            f"--plan {path}: cannot be read ({err}); expected what a run's plan.json holds"
        ) from err
    except PlanError as err:
        raise PlanError(f"--plan {path}: {err}") from err


def unlike_the_run(job: Job, method: Callable[[Job], None]) -> list[str]:
    """What --dry-run has to say of what it shows: how many cuts the run makes, and what it ranks by."""
    options, shown = job.options, len(job.trace)
    if options.plan is not None:
        return []
    making, notes = parts.cuts_in(job, method), []
    if making > shown:
        here = "is one cut" if shown == 1 else f"are {shown} cuts"
        notes.append(
            f"shown {here}; the run makes {making} and trains in between, so other channels may go (--steps)"
        )
    elif shown > 1:
        notes.append(
            f"shown are the run's {shown} cuts without the training in between, so other channels may go"
        )
    if learned := getattr(method, "learns_ranks", None):
        notes.append(f"shown is what --score {options.score} says: {learned}")
    return notes


def images_to_come(job: Job, method: Callable[[Job], None]) -> int:
    """About how many images the run would train on after its first cut; stages of it are rounded to whole steps."""
    count = job.options.recover * len(job.target)
    beside: Callable[[Job], float] = getattr(method, "passes_beside", lambda job: 0.0)
    few = (
        min(job.options.batch, len(job.target)) * job.options.accumulate / 2
    )  # the least of which a step is made
    return round(count + beside(job) * len(job.target)) if count >= few else 0


def of_several_cuts(job: Job, method: Callable[[Job], None]) -> list[str]:
    """A warning for each option that only says how several cuts follow each other, where the method makes one."""
    options, usual, unheard = job.options, PruneOptions(), getattr(method, "ignores", {})
    said = [
        n for n in ("schedule", "between") if getattr(options, n) != getattr(usual, n) and n not in unheard
    ]
    if options.plan is not None or not said or isinstance(method, Then) or parts.cuts_in(job, method) != 1:
        return []
    return [
        f"--{name} {getattr(options, name)}: has no effect: --method {options.method} makes one cut "
        "(--steps N makes more)"
        for name in said
    ]


def unlike_the_words(options: PruneOptions, job: Job, widths: Mapping[str, tuple[int, int]]) -> list[str]:
    """Warnings of a result that may surprise: nothing was cut, or widths of another multiple."""
    found = []
    if not widths and not any(plan.low_rank for plan in job.plans):
        found.append("nothing was cut: the network is within the budget as it is")
    off = [name for name, (_, new) in widths.items() if new % options.width_multiple]
    if off and options.width_multiple > PruneOptions().width_multiple:
        found.append(
            f"{len(off)} of {len(widths)} layers have no multiple of {options.width_multiple} channels, since their "
            f"groups, heads or own width do not divide so: {', '.join(off[:3])}"
        )
    return found
