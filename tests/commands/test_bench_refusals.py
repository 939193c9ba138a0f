"""What bench refuses before it measures: each sentence, and that nothing was measured or left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cli.app import main
from edgeprune.commands import bench as command
from edgeprune.commands.bench import bench
from edgeprune.device_options import BenchOptions
from edgeprune.errors import DataError, EdgePruneError, MissingHere, OutputExists, UsageError
from edgeprune.runtime import ort

from .test_bench import QUICK, network


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    return str(network(tmp_path / "dense.onnx", 16)), str(network(tmp_path / "slim.onnx", 8))


SAMPLES = command._samples


def fail(*_: Any) -> None:
    raise AssertionError("measured before it refused")


@pytest.fixture(autouse=True)
def never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_samples", fail)


@pytest.fixture
def earlier(pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What was measured of the dense network before the tests' guard stands."""
    monkeypatch.setattr(command, "_samples", SAMPLES)
    bench(replace(QUICK, artifacts=pair[:1], output=tmp_path / "earlier.json"))
    monkeypatch.setattr(command, "_samples", fail)
    return str(tmp_path / "earlier.json")


def test_the_guard_of_these_tests_fires(pair: tuple[str, str]) -> None:
    with pytest.raises(AssertionError, match="measured before it refused"):
        bench(replace(QUICK, artifacts=pair))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"mode": "fast"}, "--mode fast: expected one of steady, paced, cold, throughput"),
        ({"mode": "throughput", "streams": 0}, "--streams 0: expected 1 or more"),
        ({"mode": "paced", "fps": -1.0}, "--fps -1: expected frames a second, above 0 and at most 10,000"),
        (
            {"mode": "paced", "fps": 1e9},
            r"--fps 1e\+09: expected frames a second, above 0 and at most 10,000",
        ),
        ({"threads": "two"}, "--threads 'two': expected numbers such as 1 or 1,2; 0 is all cores"),
        ({"threads": "-1"}, "--threads '-1': expected numbers such as 1 or 1,2; 0 is all cores"),
        ({"batch": "0"}, "--batch '0': expected sizes such as 1 or 1,8"),
        ({"power": 0.0}, "--power 0: expected seconds of load above 0"),
        ({"power": float("nan")}, "--power nan: expected seconds of load above 0"),
        ({"seconds": float("nan")}, "--seconds nan: expected a number of seconds, 0 or more"),
        ({"seconds": -1.0}, "--seconds -1: expected a number of seconds, 0 or more"),
        ({"warmup": -0.5}, "--warmup -0.5: expected a number of seconds, 0 or more"),
        ({"runs": 0}, "--runs 0: expected 1 or more"),
        ({"seed": -1}, "--seed -1: expected 0 or a positive number"),
        (
            {"runtime": "nix"},
            "--runtime nix: the choices are auto, ort, tensorrt, tensorrt-rtx, torch, torch-",
        ),
        ({"runtime": "torch", "device": "banana"}, "--device banana: expected cpu, cuda or cuda:N"),
        (
            {"device": "cuda"},
            "--device cuda is for checkpoints run by torch, .*ONNX Runtime takes --provider cuda",
        ),
        ({"fps": 60.0}, "--fps 60 is for --mode paced, not steady: leave one of the two out"),
        ({"streams": 4}, "--streams 4 is for --mode throughput, not steady"),
        ({"images": Path("shots"), "input": "zeros"}, "--images shots and --input zeros are two inputs"),
        ({"input": "noise"}, "input 'noise': expected random or zeros"),
        ({"diagnose": True}, "--diagnose compares layers: give the dense network as --baseline"),
    ],
)
def test_words_that_make_no_sense(pair: tuple[str, str], words: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        bench(replace(QUICK, artifacts=pair, **words))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"batch": "1,8"}, "dense.onnx and what is asked for are not comparable: batch 1 against 8; measure"),
        ({"threads": "2"}, "threads 1 against 2"),
        ({"input": "zeros"}, "input random against zeros"),
        (
            {"mode": "throughput"},
            "not comparable: mode steady against throughput; measure them alike, or give",
        ),
        (
            {"spin": True},
            r"dense.onnx and .*slim.onnx are not comparable: spinning threads \(--spin\) no against yes",
        ),
    ],
)
def test_an_unlike_baseline_is_refused_at_once(
    pair: tuple[str, str], earlier: str, words: dict[str, Any], said: str
) -> None:
    asked = replace(QUICK, artifacts=pair[1:], baseline=earlier, **words)
    with pytest.raises(UsageError, match=said):
        bench(asked)
    with pytest.raises(AssertionError, match="measured"):
        bench(replace(asked, force_compare=True))


def test_inputs_of_other_sizes_are_not_compared(pair: tuple[str, str], earlier: str, tmp_path: Path) -> None:
    small = str(network(tmp_path / "small.onnx", 8, size=20))
    for baseline in (pair[0], earlier):
        with pytest.raises(
            UsageError, match="not comparable: input of 3x24x24 against 3x20x20; measure them alike"
        ):
            bench(replace(QUICK, artifacts=(small,), baseline=baseline))


def test_a_diagnosis_without_layers_is_refused_at_once(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ort.OrtRunner, "layer_times")
    with pytest.raises(UsageError, match="the runtime ort does not tell its layers; it works on ONNX files"):
        bench(replace(QUICK, artifacts=pair[1:], baseline=pair[0], diagnose=True))


def test_a_network_is_not_its_own_baseline(pair: tuple[str, str]) -> None:
    dense, slim = pair
    with pytest.raises(UsageError, match=r"--baseline .*slim.onnx is the artefact itself: name another one"):
        bench(replace(QUICK, artifacts=(slim,), baseline=slim))
    with pytest.raises(AssertionError, match="measured"):
        bench(replace(QUICK, artifacts=(dense, slim), baseline=dense))
    with pytest.raises(UsageError, match="explains latency call after call, not --mode cold"):
        bench(replace(QUICK, artifacts=(slim,), baseline=dense, diagnose=True, mode="cold"))


def test_a_result_is_not_a_network(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text("[]")
    with pytest.raises(
        DataError, match=r"bench.json: a result, not a network; --baseline .* compares with it"
    ):
        bench(replace(QUICK, artifacts=(str(file),)))


@pytest.mark.parametrize("field", ["output", "csv", "markdown"])
def test_outputs_that_cannot_be_written(pair: tuple[str, str], tmp_path: Path, field: str) -> None:
    def asked(path: Path) -> Callable[[], object]:
        return lambda: bench(replace(QUICK, artifacts=pair, **{field: path}))  # type: ignore[arg-type]

    cases: tuple[tuple[Path, type[EdgePruneError], str], ...] = (
        (Path("/proc/no/x.csv"), MissingHere, "/proc/no/x.csv: cannot be written, since /proc takes no file"),
        (Path(pair[0]) / "x.csv", MissingHere, "dense.onnx takes no file .Not a directory"),
        (tmp_path, UsageError, "is a folder; expected the name of a file to write"),
        (Path(pair[0]), OutputExists, "dense.onnx exists; --force replaces it"),
    )
    for path, kind, said in cases:
        with pytest.raises(kind, match=said):
            asked(path)()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AssertionError, match="measured"):
        asked(tmp_path / "new" / "x.csv")()
    assert sorted(tmp_path.iterdir()) == before, "nothing is left behind"


def test_two_outputs_need_two_names(pair: tuple[str, str], tmp_path: Path) -> None:
    one = tmp_path / "x"
    with pytest.raises(UsageError, match="two outputs have this name"):
        bench(replace(QUICK, artifacts=pair, csv=one, output=tmp_path / "." / "x"))


def test_an_import_alone_drops_nothing_silently(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text("[I] Latency: min = 1 ms, max = 3 ms, mean = 2 ms, median = 1.5 ms\n")
    for words in ({"baseline": "dense.onnx"}, {"power": 10.0}, {"diagnose": True}):
        with pytest.raises(UsageError, match=f"--{next(iter(words))} needs something to measure"):
            bench(BenchOptions(import_trtexec=file, **words))


def test_a_baseline_that_is_no_result(pair: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    with pytest.raises(DataError, match=r"old.json: no such file; expected what bench -o wrote"):
        bench(replace(QUICK, artifacts=pair, baseline=str(file)))
    file.write_text("{")
    with pytest.raises(DataError, match=r"old.json: is not JSON .*; expected what bench -o wrote"):
        bench(replace(QUICK, artifacts=pair, baseline=str(file)))


def test_the_exit_codes_on_the_command_line(pair: tuple[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", pair[1], "--seed", "-1"]) == 2
    assert main(["bench", pair[1], "--csv", "/proc/no/x.csv"]) == 5
    assert "Traceback" not in capfd.readouterr().err
