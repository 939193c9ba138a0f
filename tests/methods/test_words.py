"""What `edgeprune prune` makes of its words: knobs without effect, cuts that a dry run leaves out, the objective's."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgeprune import catalog
from edgeprune.commands import prune_words, timing
from edgeprune.commands.prune import prune
from edgeprune.errors import UsageError
from edgeprune.methods import learning
from edgeprune.methods.job import Job
from edgeprune.options import PruneOptions


@pytest.fixture
def options(options: PruneOptions) -> PruneOptions:
    """Half of the MACs, in as many cuts as the method makes."""
    return replace(options, iterations=None, schedule=None, recover=2.0, between=0.5)


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("tana", {"set": ("distill=1",)}, "--set distill=1: has no effect: it goes with --labelled-target"),
        (
            "tana",
            {"set": ("layers=1",), "labelled": True},
            "--set layers=1: has no effect: --labelled-target is",
        ),
        (
            "tcp",
            {"set": ("weight=2", "variant=code"), "objective": "mcc"},
            "--set weight=2: has no effect: --obj",
        ),
        (
            "tcp",
            {"set": ("weight=2",), "objective": "mcc"},
            "--set weight=2: weighs the ranks alone: --objective mcc",
        ),
        (
            "tcp",
            {"set": ("channels=32",), "iterations": 3},
            "--steps 3: --method tcp does not look at it: channels=32",
        ),
        ("tcp", {"set": ("channels=32", "cuts=3")}, "--set cuts=3: has no effect: channels=32 says"),
        ("tcp", {"set": ("batches=3", "variant=given")}, "--set batches=3: has no effect: --score"),
        ("itmc", {"set": ("batches=3", "score=given")}, "--set batches=3: has no effect: --score"),
        ("itmc", {"set": ("batches=3",)}, "--set batches=3: has no effect: the target's images rank"),
        (
            "tana",
            {"set": ("most=0.5", "statistic=given")},
            "--set most=0.5: has no effect: --score and --rank",
        ),
        (
            "tana",
            {"set": ("level=0.1", "priority=budget")},
            "--set level=0.1: has no effect: priority=budget",
        ),
        ("admp", {"set": ("rho0=1", "passes=0")}, "--set rho0=1: has no effect: passes=0"),
        ("admp", {"set": ("every=5", "admm=false")}, "--set every=5: has no effect: admm=false"),
        ("admp", {"set": ("b=2", "soft=random")}, "--set b=2: has no effect: soft=random"),
        ("admp", {"set": ("threshold=0.5", "pseudo=0")}, "--set threshold=0.5: has no effect: pseudo=0"),
        (
            "admp",
            {"set": ("lam=2", "passes=0", "tune=distill")},
            "--set lam=2: has no effect: nothing learns from it",
        ),
        ("swmmd", {"set": ("through=true", "momentum=1")}, "--set through=true: has no effect: momentum=1"),
        ("swmmd", {"set": ("power=1", "score=given")}, "--set power=1: has no effect: --score"),
        ("swmmd", {"set": ("tune=both", "distill=false")}, "--set tune=both: has no effect: distill=false"),
        ("swmmd", {"set": ("remove=0.2",), "iterations": 2}, "--set remove=0.2: has no effect: --steps 2"),
        ("itmc", {"set": ("cuts=2",), "iterations": 2}, "--set cuts=2: has no effect: --steps 2"),
        (
            "auto",
            {"schedule": "linear", "iterations": None},
            "--schedule linear: has no effect: --method auto makes one",
        ),
        ("auto", {"schedule": "linear", "iterations": 2}, None),
        (
            "distill",
            {"between": 1.0, "iterations": None},
            "--between 1.0: has no effect: --method distill makes one",
        ),
        ("tana", {"set": ("layers=1",)}, None),
        ("tcp", {"set": ("weight=2",)}, None),
    ],
)
def test_knobs_without_effect_are_told(
    method: str, change: dict[str, Any], said: str | None, options: PruneOptions
) -> None:
    given = replace(options, method=method, dry_run=True, recover=0.0)
    if change.pop("labelled", False):
        given = replace(given, labelled_target=options.target)
    found = [w for w in prune(replace(given, **change)).warnings if not w.startswith(("shown", "--source"))]
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("distill", {}),
        ("auto", {"recover": 2.0}),
        ("swmmd", {"set": ("remove=0.2",)}),
        ("tcp", {"set": ("channels=48", "batches=1")}),
        ("tcp", {"set": ("channels=48", "batches=1"), "then": "dalr", "then_share": 0.6}),
        ("itmc", {"set": ("batches=1", "score=student")}),
        ("tana", {"iterations": 2}),
        ("auto", {"recover": 2.0, "then": "dalr", "then_share": 0.6}),
        ("admp", {"set": ("passes=1",)}),
        ("admp", {"set": ("passes=8",), "iterations": 3, "recover": 4.0}),
        ("distill", {"recover": 0.01}),
    ],
)
def test_a_dry_run_says_how_many_cuts_the_run_makes(
    method: str, change: dict[str, Any], options: PruneOptions
) -> None:
    words = replace(options, method=method, **{"multiple": 4, "recover": 0.5, **change})
    shown = prune(replace(words, dry_run=True))
    run = prune(words)
    made = len(run.cuts)
    (note,) = [w for w in shown.warnings if w.startswith(("shown is one", "shown are"))] or [""]
    if made > len(shown.cuts):
        assert f"; the run makes {made} and trains in between" in note
    elif made > 1:
        assert f"shown are the run's {made} cuts without the training" in note
    else:
        assert not note
    # stages take whole steps: one of both domains is off by at most half of one
    assert abs(shown.trained_images - run.trained_images) <= words.batch
    if method == "distill":
        assert (shown.trained_images > 0) == (run.trained_images > 0) == (words.recover > 0.1)
    learned = [w for w in shown.warnings if w.startswith("shown is what --score measured says: ")]
    assert len(learned) == (method in ("swmmd", "admp"))


def test_knobs_of_the_objective_reach_it(options: PruneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside distillation, as a method's own, and as the one that is taken when none is named."""
    seen: list[Any] = []
    knowing = learning.knowing

    def spy(*given: Any, **named: Any) -> Any:
        seen.append(knowing(*given, **named))
        return seen[-1]

    monkeypatch.setattr(learning, "knowing", spy)
    words = replace(options, recover=2.0)
    given = ("objective.partial=true",)
    for method, objective in (
        ("auto", "mcc"),
        ("adapt-then-prune", "none"),
        ("tcp", "dan"),
        ("prune-then-adapt", "bnm"),
    ):
        said = replace(words, method=method, objective=objective, force=True, iterations=1)
        prune(replace(said, set=given))
        assert seen
        assert all(one.knobs.partial and one.partial for one in seen), method
        seen.clear()
    prune(replace(words, objective="mcc", force=True, iterations=1, set=("objective.weight=0.5", "layers=0")))
    assert [one.knobs.weight for one in seen] == [0.5]


def test_wrong_knobs_of_the_objective_are_told(options: PruneOptions) -> None:
    words = replace(options, objective="mcc")
    for change, message in (
        ({"set": ("objective.partal=true",)}, "mcc has no knob 'partal': did you mean 'partial'"),
        ({"set": ("objective.partial=perhaps",)}, "expected true or false"),
        ({"set": ("objective.weight=-1",)}, "--set weight=-1: expected a number of 0 or more"),
        (
            {"set": ("objective.partial=true",), "objective": "none"},
            "no objective goes on while recovering; give",
        ),
        (
            {"set": ("objective.partial=true",), "method": "swmmd"},
            "--method swmmd looks at no objective: its own is",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            prune(replace(words, **change))


def test_a_plan_in_place_of_a_method_is_said(options: PruneOptions) -> None:
    assert options.output is not None
    prune(replace(options, method="distill", recover=0.0))
    words = replace(
        options, macs=None, plan=options.output / "plan.json", source=None, dry_run=True, recover=0.0
    )
    assert prune(words).method == "plan"
    assert prune(words).warnings == ()
    heard = prune(replace(words, method="tana", set=("level=0.1",), score="magnitude", iterations=3)).warnings
    assert [w.split(":")[0] for w in heard] == [
        "--score magnitude",
        "--steps 3",
        "--method tana",
        "--set level=0.1",
    ]


def test_labels_and_low_rank_do_not_go_together(options: PruneOptions) -> None:
    with pytest.raises(UsageError, match="--then dalr: its recovery learns from the dense network alone"):
        prune(replace(options, method="tana", then="dalr", labelled_target=options.target))


def test_results_that_may_surprise_are_told() -> None:
    job = cast(Job, SimpleNamespace(plans=[]))
    said = prune_words.unlike_the_words(PruneOptions(precision="int8"), job, {})
    assert said == ["nothing was cut: the network is within the budget as it is"]
    widths = {"a": (64, 32), "b": (48, 20)}
    (told,) = prune_words.unlike_the_words(PruneOptions(precision="int8"), job, widths)
    assert told == (
        "1 of 2 layers have no multiple of 32 channels, since their groups, heads or own width do not divide so: b"
    )
    assert prune_words.unlike_the_words(PruneOptions(), job, widths) == []


@pytest.mark.parametrize(
    ("share", "planned", "told"),
    [
        (0.94, 0.99, True),
        (0.94, 0.6, False),
        (0.94, None, False),
        (0.96, 0.99, False),
        (1.02, 1.0, False),
        (1.03, 1.0, True),
        (1.03, None, True),
    ],
)
def test_a_latency_outside_its_band_is_told(share: float, planned: float | None, told: bool) -> None:
    said = timing.outside({"of_requested": share}, planned)
    assert bool(said) == told
    assert not told or f"takes {share:.2f} of the latency" in said[0]
    assert timing.outside({"predicted_ms": 2.0}, None) == []  # another machine's


def test_a_knob_of_the_criterion(options: PruneOptions) -> None:
    """Mean or sum over a coupling's layers; what a word says reaches the criterion, and only where one is asked."""
    given = replace(options, method="distill", score="magnitude", dry_run=True)
    seen: list[Any] = []
    kind = catalog.load(catalog.SCORES, "magnitude", "score")
    call = kind.__call__

    def noted(self: Any, *args: Any) -> Any:
        seen.append(self.reduce)
        return call(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "__call__", noted)
        prune(replace(given, set=("score.reduce=sum",)))
        prune(given)
    assert set(seen[:1]) == {"sum"}
    assert set(seen[-1:]) == {"mean"}
    with pytest.raises(UsageError, match="score magnitude has no knob 'reduc': did you mean 'reduce'"):
        prune(replace(given, set=("score.reduc=sum",)))
    with pytest.raises(UsageError, match=r"--set score\.reduce=sum: --method tcp does not look at --score"):
        prune(replace(given, method="tcp", set=("score.reduce=sum",)))
