"""prune: within its budget, the same in a fresh process, resumable, and nothing left behind by a mistake."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgeprune import checkpoint, records, train
from edgeprune.commands.prune import prune
from edgeprune.errors import BudgetNotMet, DataError, PlanError, UsageError
from edgeprune.methods import parts
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions, PruneOptions

Make = Callable[..., Path]
DIGITS = "edgeprune.digits_net:digits_net"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-class checkpoint for 16 x 16 images."""
    file = tmp_path_factory.mktemp("dense") / "model.safetensors"
    torch.manual_seed(0)
    network, _ = open_network(DIGITS, ModelOptions(weights="none", classes="2", size=16), ("cat", "dog"))
    checkpoint.write(file, network)
    return file


@pytest.fixture
def options(dense: Path, tmp_path: Path, make_images: Make) -> PruneOptions:
    return PruneOptions(
        model=str(dense),
        target=make_images(tmp_path / "images", count=4),
        macs="0.5",
        recover=2.0,
        batch=4,
        output=tmp_path / "slim",
        device="cpu",
    )


FRESH = """
import sys, torch
from edgeprune import checkpoint
from pathlib import Path
network = checkpoint.read(Path(sys.argv[1]))
with torch.no_grad():
    torch.save(network.module(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_a_fresh_process_gives_bit_equal_answers(options: PruneOptions, tmp_path: Path) -> None:
    seen: list[torch.nn.Module] = []
    dumps = checkpoint.dumps
    with pytest.MonkeyPatch.context() as patch:

        def spy(network: Any) -> bytes:
            seen.append(network.module)
            return dumps(network)

        patch.setattr(checkpoint, "dumps", spy)
        found = prune(replace(options, evaluate=options.target))
    assert found.macs <= 0.5 * found.dense_macs
    assert found.agreement is not None
    assert found.accuracy is not None
    assert found.next == f"edgeprune export {options.output}"
    assert records.results(tmp_path / "slim")["macs"] == found.macs
    x = torch.randn(4, 3, 16, 16)
    torch.save(x, tmp_path / "x.pt")
    words = [str(options.output), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run([sys.executable, "-c", FRESH, *words], check=True)
    with torch.no_grad():
        assert torch.equal(seen[-1].eval()(x), torch.load(tmp_path / "y.pt"))


def test_several_cuts_go_on_after_a_kill_at_any_of_them(
    options: PruneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each cut and each recovery in turn (nothing is cleaned up), then resumed: bit-equal weights."""
    several = replace(options, iterations=3, between=1.0, schedule="linear")
    whole = prune(replace(several, output=tmp_path / "whole"))
    assert [cut["cut"] for cut in whole.cuts] == [1, 2, 3]
    assert sorted((c["macs"] for c in whole.cuts), reverse=True) == [c["macs"] for c in whole.cuts]
    cut, fit = parts.cut, train.fit

    class Killed(BaseException):
        pass

    passed: list[str] = []

    def once(name: str) -> None:
        if name not in passed:
            passed.append(name)
            raise Killed

    def killed_cut(job: Any, ceilings: Any, number: int = 1) -> Any:
        found = cut(job, ceilings, number)
        once(f"cut {number}")
        return found

    def killed_fit(*words: Any, **named: Any) -> train.Fit:
        found = fit(*words, **named)
        once(named["stage"])
        return found

    monkeypatch.setattr(parts, "cut", killed_cut)
    monkeypatch.setattr(train, "fit", killed_fit)
    for _ in range(6):
        with pytest.raises(Killed):
            prune(replace(several, resume=True))
    found = prune(replace(several, resume=True))
    assert passed == ["cut 1", "recover-1", "cut 2", "recover-2", "cut 3", "recover-3"]
    assert found.widths == whole.widths
    assert found.cuts == whole.cuts
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "slim"))
    assert all(torch.equal(left[name], right[name]) for name in left | right)


def test_a_plan_can_be_given(options: PruneOptions, tmp_path: Path) -> None:
    found = prune(replace(options, recover=0.0))
    again = replace(options, plan=tmp_path / "slim" / "plan.json", macs=None, recover=0.0)
    dry = prune(replace(again, dry_run=True, output=tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    other = prune(replace(again, output=tmp_path / "again"))
    assert found.widths == other.widths == dry.widths
    assert found.macs == other.macs == dry.macs
    with pytest.raises(UsageError, match=r"says what is kept, and so does macs 0\.5: give one"):
        prune(replace(again, macs="0.5"))
    said = json.loads((tmp_path / "slim" / "plan.json").read_text())
    wider = {**said["cuts"][0], "width": said["cuts"][0]["width"] + 8}
    (tmp_path / "wider.json").write_text(json.dumps({**said, "cuts": [wider]}))
    with pytest.raises(PlanError, match=rf"{wider['width']} channels in the plan, {wider['width'] - 8} in"):
        prune(replace(again, plan=tmp_path / "wider.json", force=True, output=tmp_path / "slim"))
    pair = {"layer": said["cuts"][0]["root"], "rank": 10**6}
    (tmp_path / "pairs.json").write_text(json.dumps({**said, "cuts": [], "low_rank": [pair]}))
    with pytest.raises(PlanError, match=r"low-rank|rank 1000000 in the plan"):
        prune(replace(again, plan=tmp_path / "pairs.json", force=True, output=tmp_path / "slim"))
    with pytest.raises(BudgetNotMet):
        prune(replace(options, macs="0.0001", force=True, output=tmp_path / "slim"))
    assert (tmp_path / "slim" / "done.json").is_file(), "what makes no sense replaces no finished run"
    (tmp_path / "bad.json").write_text("[1]")
    for name in ("bad.json", "absent.json"):
        with pytest.raises(
            PlanError, match=r"bad.json: not a pruning plan|absent.json: cannot be read .*plan.json"
        ):
            prune(replace(again, plan=tmp_path / name, output=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_what_int8_computes_and_every_rank(options: PruneOptions) -> None:
    plain = replace(options, dry_run=True)
    found = prune(replace(plain, precision="int8"))
    assert found.widths
    assert all(new % 32 == 0 for old, new in found.widths.values())
    assert found.padded_macs is not None
    assert found.padded_macs >= found.macs
    finer = prune(replace(plain, precision="int8", multiple=16))
    assert any(new % 32 for _, new in finer.widths.values())
    as_always = prune(replace(plain, precision="int8", multiple=8))
    assert as_always.widths == prune(plain).widths
    ranked = [prune(replace(plain, rank=rank)) for rank in ("global", "threshold", "local", "isomorphic")]
    assert all(one.macs <= 0.5 * found.dense_macs for one in ranked)
    assert len({str(one.widths) for one in ranked}) == 4


def test_layers_are_kept_by_side(options: PruneOptions) -> None:
    plain = prune(replace(options, dry_run=True)).widths
    layer = next(name for name in plain if name.startswith("features.2"))
    kept = prune(replace(options, dry_run=True, keep_out=(layer,))).widths
    assert layer not in kept
    assert kept


def test_a_model_that_was_no_run(options: PruneOptions) -> None:
    """A published or own network goes without adaptation; its checkpoint has no parent."""
    found = prune(replace(options, model=DIGITS, weights="none", size=16, recover=0.0))
    assert found.run is not None
    history = checkpoint.read(found.run).history
    assert history[-1]["parent"] is None
    assert any(said.startswith("--weights none: unless") for said in found.warnings)
    with pytest.raises(UsageError, match=r"^--classes 3: the classifier is new and untrained; adapt first"):
        prune(replace(options, model=DIGITS, weights="none", classes="3"))


@pytest.mark.parametrize("objective", ["mcc", "shot"])
def test_an_objective_goes_on_while_recovering(objective: str, options: PruneOptions) -> None:
    found = prune(replace(options, objective=objective, source=options.target, score="taylor-labels"))
    assert "agreement_after_recovery" in found.cuts[-1]


def test_dry_run_shows_the_plan_and_writes_nothing(options: PruneOptions, tmp_path: Path) -> None:
    found = prune(replace(options, dry_run=True))
    assert found.run is None
    assert found.next is None
    assert found.macs <= 0.5 * found.dense_macs
    assert found.widths
    assert not (tmp_path / "slim").exists()


def test_a_budget_that_cannot_be_met_names_the_nearest(options: PruneOptions, tmp_path: Path) -> None:
    with pytest.raises(BudgetNotMet, match=r"nearest|least|smallest") as found:
        prune(replace(options, macs="0.001"))
    assert found.value.exit_code == 3
    assert any(c.isdigit() for c in str(found.value))
    assert "lower --multiple from 8 or lower --floor from 0.1" in str(found.value)
    # Nothing was made that a second try would stumble over.
    assert not options.output or not options.output.exists()
    assert prune(replace(options, macs="0.5", recover=0.0)).macs


def test_mistakes_leave_no_folder(options: PruneOptions, tmp_path: Path, make_images: Make) -> None:
    three = make_images(tmp_path / "three", ("cat", "cow", "dog"), 2)
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (UsageError, "no budget: say what to keep", {"macs": None}),
        (UsageError, "--macs 3: expected what is kept", {"macs": "3"}),
        (UsageError, "--macs 150%: expected what is kept", {"macs": "150%"}),
        (UsageError, "no method is called 'distil': did you mean 'distill'", {"method": "distil"}),
        (UsageError, "auto has no knob 'rounds': the only one is 'layers'", {"set": ("rounds=2",)}),
        (UsageError, "no score is called 'tailor': did you mean 'taylor'", {"score": "tailor"}),
        (UsageError, "--score taylor-labels needs labelled source", {"score": "taylor-labels"}),
        (UsageError, "--objective mcc learns from labelled source", {"objective": "mcc"}),
        (UsageError, "no schedule is called 'cubik'", {"schedule": "cubik"}),
        (UsageError, "--device cup: expected auto, cpu, cuda", {"device": "cup"}),
        (UsageError, "--rank globl: did you mean 'global'", {"rank": "globl"}),
        (UsageError, "--steps 0: expected 1 or more", {"iterations": 0}),
        (UsageError, "--latency 2: expected what is kept", {"latency": "2"}),
        (UsageError, "--table t.json: goes with a latency budget", {"table": Path("t.json")}),
        (UsageError, "--for int9: did you mean 'int8'", {"precision": "int9"}),
        (
            UsageError,
            "--keep-out clasifier: no layer .* did you mean 'classifier'",
            {"keep_out": ("clasifier",)},
        ),
        (UsageError, r"--keep-in \*x: no layer .* there are classifier, feat.* more", {"keep_in": ("*x",)}),
        (UsageError, "--floor 2: expected 0 to 1", {"floor": 2}),
        (DataError, "folder 'cow' is no class of the model", {"evaluate": three}),
    ]
    for error, message, change in wrong:
        with pytest.raises(error, match=message) as found:
            prune(replace(options, **change))
        assert "\n" not in str(found.value), message
        assert not (tmp_path / "slim").exists(), message


def test_metrics_have_every_cut_once(options: PruneOptions, tmp_path: Path) -> None:
    prune(replace(options, iterations=2))
    lines = [json.loads(line) for line in (tmp_path / "slim" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "cut"] == [1, 2]


@pytest.mark.parametrize(
    ("method", "words", "unheard"),
    [
        ("auto", (), []),
        ("dalr", (), ["score", "rank"]),
        ("tana", (), ["score", "rank"]),
        ("tana", ("statistic=given",), []),
        ("uniform", (), ["rank", "score"]),
        ("adapt-then-prune", ("score=given", "tune=source"), ["objective"]),
        ("swmmd", (), ["objective", "score"]),
        ("tcp", (), ["score"]),
        ("itmc", ("score=given",), []),
        ("two-stage", (), ["score"]),
    ],
)
def test_options_that_a_method_does_not_look_at_are_told(
    method: str, words: tuple[str, ...], unheard: list[str], options: PruneOptions
) -> None:
    said = replace(options, score="magnitude", rank="local", objective="mcc", source=options.target)
    found = prune(replace(said, method=method, set=words, dry_run=True)).warnings
    named = [w.split()[0].removeprefix("--") for w in found if "does not look at it" in w]
    assert named == unheard
    assert all(f"--method {method} does not look at it: " in w for w in found if w.startswith("--score"))
