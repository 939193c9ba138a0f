"""The plain combinations of pruning and adapting that every joint method has to beat, none of which distils.

All count images as `work` says, from the first cut on; each says which network it expects. What the adapted network of
the others had seen before is not counted, so those that expect the source network see less in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgeprune.errors import UsageError
from edgeprune.methods import learning, parts, work
from edgeprune.methods.job import Job
from edgeprune.objectives.source import Source
from edgeprune.waist import Objective


@dataclass(frozen=True)
class PruneThenAdapt:
    """Expects the source network: cut it as if there were no target, repair it on source, then adapt it.

    score: of the cut; --score is not asked, as most of its choices look at the target. source_share: of the images that
    go into the repair, the rest into adapting by --objective (auto when none is named).

    UsageError without source.
    """

    score: Literal["magnitude", "taylor-labels", "bn-scale", "lamp", "fpgm", "random"] = "magnitude"
    source_share: float = 0.5

    def __post_init__(self) -> None:
        _check_share(self.source_share)

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        return {"score": "--set score=NAME says which"}

    usual_objective: ClassVar[str] = work.USUAL

    def __call__(self, job: Job) -> None:
        """Cut once or as often as --steps says; adapt `job.network` in place after the last cut."""
        work.require_source(job, "prune-then-adapt")
        _expect_source_network(job, "prune-then-adapt")
        _cut_on_source(job, self.score, self.source_share)
        passes = job.options.recover * (1 - self.source_share)
        work.learn(job, work.adapting(job), passes, "adapt", choose=True)


@dataclass(frozen=True)
class TwoStage:
    """Expects the source network: TCP's two stages one after the other, the baseline of its tables (arXiv 1904.02654).

    Iterations of ranking by the cross entropy's first-order change and fine-tuning on source, then CE + MMD. cuts:
    iterations when --steps is not given. source_share: of the images that the first stage has.

    UsageError without source. The paper says no more of it than its name; that the second stage is the base network's
    DAN, unless --objective names another, is ours.
    """

    cuts: int = 8
    source_share: float = 0.5

    def __post_init__(self) -> None:
        _check_share(self.source_share)

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        return {"score": "the first-order change of the source's cross entropy ranks"}

    usual_objective: ClassVar[str] = "dan"

    def __call__(self, job: Job) -> None:
        """Prune and adapt `job.network` in place, within `job.budget`."""
        work.require_source(job, "two-stage")
        _expect_source_network(job, "two-stage")
        job = work.several(job, self.cuts, "linear")
        _cut_on_source(job, "taylor-labels", self.source_share)
        work.learn(
            job,
            work.adapting(job, usual=self.usual_objective),
            job.options.recover * (1 - self.source_share),
            "adapt",
        )


@dataclass(frozen=True)
class AdaptThenPrune:
    """Expects the adapted network: cut it, then fine-tune it, without a teacher.

    score: of the cut, or "given" for --score. tune: with the adaptation objective (--objective, auto when none is
    named), or on "source" alone, which is what pruning tools do by themselves. UsageError when the source is needed and
    missing.
    """

    score: Literal["magnitude", "taylor", "taylor-labels", "bn-scale", "lamp", "fpgm", "random", "given"] = (
        "magnitude"
    )
    tune: Literal["adapt", "source"] = "adapt"

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        score = {} if self.score == "given" else {"score": "--set score=NAME says which"}
        return score | ({"objective": "--set tune=source has none"} if self.tune == "source" else {})

    usual_objective: ClassVar[str] = work.USUAL

    def __call__(self, job: Job) -> None:
        """Cut and fine-tune `job.network` in place, within `job.budget`."""
        if self.tune == "source" or self.score == "taylor-labels":
            work.require_source(job, "adapt-then-prune")
        _in_turn(_by(job, self.score), self._objective, choose=self.tune == "adapt")

    def _objective(self, job: Job) -> Objective:
        return source_alone(job) if self.tune == "source" else work.adapting(job)


@dataclass(frozen=True)
class Uniform:
    """Expects the adapted network: the same share of every layer's channels stays, by magnitude; then as `distill`.

    The control for any method that claims to find which layers need their channels. score: within a layer, or "given".
    """

    score: Literal["magnitude", "taylor", "random", "given"] = "magnitude"

    @property
    def ignores(self) -> dict[str, str]:
        """Options that are not looked at -> what is in their place."""
        score = {} if self.score == "given" else {"score": "--set score=NAME says which"}
        return {"rank": "every layer keeps the same share", **score}

    def __call__(self, job: Job) -> None:
        """Cut and distil `job.network` in place, within `job.budget`."""
        _in_turn(_by(parts.as_if(job, rank="local"), self.score), parts.chosen_objective)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise UsageError(f"source_share={share:g}: expected a share in 0..1")


def _expect_source_network(job: Job, method: str) -> None:
    """Warn where the network has met a target already: the baseline is of one that has not."""
    objectives = (e.get("objective") for e in job.network.history if e.get("command") == "adapt")
    if met := [name for name in objectives if name not in (None, "source")]:
        job.warnings.append(
            f"{method}: this network is adapted already ({met[-1]}); the baseline begins with the cloud model"
        )


def source_alone(job: Job) -> Objective:
    """Cross entropy on source, nothing else."""
    return Source(learning.task(job.network), Source.Knobs(smoothing=0.0))


def _by(job: Job, score: str) -> Job:
    return job if score == "given" else parts.as_if(job, score=score)


def _cut_on_source(job: Job, score: str, share: float) -> None:
    """The cuts, each followed by its part of `share` of all passes on source; `--between` as everywhere.

    Batch-norm keeps the source's statistics here: the target is not there yet.
    """
    job = parts.as_if(_by(job, score), recover=job.options.recover * share, bn_recal=False)
    job.blind = True
    _in_turn(job, source_alone, "source")


def _in_turn(
    job: Job,
    objective: Callable[[Job], Objective],
    stage: str = "recover",
    *,
    choose: bool = False,
) -> None:
    """Cut, train, and again; `choose`: validators choose the weights that the last training leaves."""
    for number, ceiling, passes in work.rounds(job):
        parts.cut(job, ceiling, number)
        chosen = choose and number == job.cuts
        work.learn(job, objective(job), passes, f"{stage}-{number}", choose=chosen)
