"""ADMP as a command: every budget, a kill at any moment, and mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgeprune import train
from edgeprune.commands.prune import prune
from edgeprune.errors import UsageError
from edgeprune.methods import admp, learning, parts, work
from edgeprune.methods.admp import ADMP, Losses
from edgeprune.options import PruneOptions
from edgeprune.waist import Step

from .test_admp import striped


def whole(options: PruneOptions, *knobs: str) -> PruneOptions:
    return replace(options, method="admp", iterations=1, recover=4.0, set=("passes=3", "every=1", *knobs))


@pytest.mark.parametrize("kind", ["macs", "params", "channels"])
def test_every_budget_holds(kind: Any, options: PruneOptions) -> None:
    words: dict[str, Any] = {"macs": None, kind: "0.5"}
    found = prune(replace(whole(options), **words))
    assert found.macs <= 0.5 * found.dense_macs or kind != "macs"
    assert found.params <= 0.5 * found.dense_params or kind != "params"
    inner = [new for name, (old, new) in found.widths.items() if ".first" in name or name.endswith("first.0")]
    assert all(width % 8 == 0 for _, width in found.widths.values())
    assert kind != "channels" or (inner and sum(inner) <= 0.5 * (64 + 128))


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "knobs", [(), ("admm=false", "soft=none"), ("teacher=ema",), ("teacher=joint",)], ids=str
)
def test_a_kill_anywhere_changes_nothing(
    knobs: tuple[str, ...], options: PruneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of the masks' training, after it, after the cut and after recovery; then resumed."""
    words = whole(options, *knobs)
    first = prune(replace(words, output=tmp_path / "whole"))
    passed: list[str] = []

    def once(name: str) -> None:
        if name not in passed:
            passed.append(name)
            raise Killed

    cut, fit, step, settings = parts.cut, train.fit, train._Loop._step, learning.settings

    def killed_cut(*given: Any) -> Any:
        found = cut(*given)
        once("cut")
        return found

    def killed_fit(*given: Any, **named: Any) -> Any:
        found = fit(*given, **named)
        once(named["stage"])
        return found

    def killed_step(self: Any, at: Step) -> Any:
        if at.number == 2:
            once(f"{self.stage} step 2")
        return step(self, at)

    monkeypatch.setattr(parts, "cut", killed_cut)
    monkeypatch.setattr(train, "fit", killed_fit)
    monkeypatch.setattr(train._Loop, "_step", killed_step)
    monkeypatch.setattr(
        learning, "settings", lambda *a, **named: replace(settings(*a, **named), save_every=1)
    )
    found = None
    while found is None:
        try:
            found = prune(replace(words, resume=True))
        except Killed:
            continue
    assert passed == ["mask-1 step 2", "mask-1", "cut", "recover-1 step 2", "recover-1"]
    assert found.cuts == first.cuts
    assert found.warnings == first.warnings
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "slim"))
    assert all(torch.equal(left[key], right[key]) for key in left | right)


def test_helpful_errors(options: PruneOptions, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--method admp learns from labelled source images: give --source DIR"
    ):
        prune(replace(whole(options), source=None))
    for word, message in (
        ("sof=true", "admp has no knob 'sof': did you mean 'soft'"),
        ("teacher=emma", "did you mean 'ema'"),
        ("rho0=big", "expected a number"),
    ):
        with pytest.raises(UsageError, match=message):
            prune(replace(whole(options), set=(word,)))
    assert not (tmp_path / "slim").exists()


def test_an_objective_that_goes_on_classifies_the_source_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for objective, terms in (("none", True), ("mcc", False)):
        seen: list[Losses] = []

        def learned(job: Any, loss: Any, *_: Any, seen: list[Losses] = seen, **__: Any) -> None:
            seen.extend(part for part in loss.modules() if isinstance(part, Losses))

        monkeypatch.setattr(work, "learn", learned)
        ADMP(passes=0.0)(striped(recover=1.0, objective=objective))
        assert [one.classifies for one in seen] == [terms]


def test_masks_that_took_no_step_or_had_not_settled_are_told(
    options: PruneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ("masks had less than a step, so --score chose", "unsettled: raise passes")
    for passes, half, expected in (
        (0.01, 0.5, [True, False]),
        (3, -1.0, [False, True]),
        (3, 2.0, [False] * 2),
    ):
        monkeypatch.setattr(admp, "HALF", half)
        found = prune(replace(whole(options, f"passes={passes}"), force=True)).warnings
        assert [any(w.endswith(words) for w in found) for words in told] == expected
