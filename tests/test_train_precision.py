"""Mixed precision and compiling in the one loop: near to float32, gradients handed over unscaled, clear refusals."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import Tensor

from edgeprune import processes, train
from edgeprune.errors import UsageError
from edgeprune.methods import learning
from edgeprune.objectives.dan import DAN
from edgeprune.objectives.mcc import MCC
from edgeprune.options import AdaptOptions
from edgeprune.waist import Step
from tests.test_train import TASK, images, network, settings, weights


class Seeing(MCC):
    """Keeps the gradients that it is shown."""

    def __init__(self) -> None:
        super().__init__(TASK)
        self.seen: list[float] = []

    def before_update(self, step: Step) -> None:
        assert self.watched.grad is not None
        self.seen.append(float(self.watched.grad.norm()))

    watched: Tensor


def fit(**more: Any) -> tuple[dict[str, Tensor], list[float]]:
    net, objective = network(), Seeing()
    attributes = set(vars(net.module))
    object.__setattr__(
        objective, "watched", net.module.get_parameter("head.weight")
    )  # not a parameter of the objective's own
    train.fit(net, objective, images(24, True, False), images(24, False, True), settings(6, **more))
    assert set(vars(net.module)) == attributes  # nothing is left that a checkpoint would hold
    return weights(net), objective.seen


def float16(monkeypatch: pytest.MonkeyPatch) -> MixedPrecision:
    """What a GPU gets with --amp fp16, on the CPU: torch's scaler and autocast work there too."""
    plugin = MixedPrecision("16-mixed", "cpu")
    assert plugin.scaler is not None
    monkeypatch.setattr(
        processes, "fabric", lambda *_: Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    )
    return plugin


def test_bfloat16_is_near_float32() -> None:
    (plain, _), (mixed, _) = fit(), fit(precision="bf16-mixed")
    assert any(not torch.equal(plain[k], mixed[k]) for k in plain)
    for key, value in plain.items():
        assert mixed[key].dtype == value.dtype
        torch.testing.assert_close(mixed[key], value, atol=0.05, rtol=0.05)


def test_float16_gradients_are_unscaled_before_anyone_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, expected = fit()
    plugin = float16(monkeypatch)
    assert plugin.scaler.get_scale() > 1000  # type: ignore[union-attr]
    mixed, seen = fit()
    assert seen == pytest.approx(expected, rel=0.05)
    for key, value in plain.items():
        torch.testing.assert_close(mixed[key], value, atol=0.05, rtol=0.05)


def test_an_overflow_skips_the_step_and_lowers_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = float16(monkeypatch)
    plugin.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # float16 ends at 65,504
    fit()
    assert plugin.scaler.get_scale() < 2.0**40


def test_compiling_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", self._call_impl)
    )
    (plain, _), (compiled, _) = fit(), fit(compile=True)
    assert all(torch.equal(plain[k], compiled[k]) for k in plain)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_for_real_features_have_their_gradients() -> None:
    """What hooks read, DAN learns by; two graphs, since the source leaves running statistics alone."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    found = []
    for compiled in (False, True):
        net = network()
        how = settings(8, compile=compiled, validations=2, optimizer="sgd")
        train.fit(net, DAN(TASK), images(24, True, False), images(24, False, True), how)
        found.append(weights(net))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, atol=1e-5, rtol=1e-4)
    assert not torch.equal(found[0]["head.weight"], network().module.get_parameter("head.weight"))


def test_words_of_the_options(tmp_path: Path) -> None:
    options = AdaptOptions(optimizer="sgd", decay="inverse", accumulate=3, amp="bf16", compile=True)
    made = learning.settings(options, 5, 2)
    assert (made.optimizer, made.decay, made.accumulate, made.precision, made.compile) == (
        "sgd",
        "inverse",
        3,
        "bf16-mixed",
        True,
    )
    for field, word, hint in (
        ("optimizer", "adam", "did you mean 'adamw'"),
        ("decay", "linear", "did you mean 'inverse'"),
        ("amp", "fp32", "the choices are bf16, fp16, none"),
    ):
        with pytest.raises(UsageError, match=rf"--{field} '{word}' is not known: {hint}"):
            learning.check_words(replace(AdaptOptions(), **{field: word}))  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_float16_needs_a_gpu() -> None:
    with pytest.raises(UsageError, match=r"--amp fp16 needs a GPU; on a CPU take --amp bf16"):
        fit(precision="16-mixed")
