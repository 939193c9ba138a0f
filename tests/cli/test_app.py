"""One object owns the exit code; an error is one line on stderr; --json leaves nothing but JSON on stdout."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import edgeprune
from edgeprune import errors
from edgeprune.cli.app import main

ROOT = Path(edgeprune.__file__).parent.parent


@dataclass(frozen=True)
class Result:
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.facts


Install = Callable[[str, Callable[[Any], Any]], None]


@pytest.fixture
def implement(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a function in the place of a command's implementation, as its lazy import finds it."""

    def install(name: str, function: Callable[[Any], Any]) -> None:
        module = types.ModuleType(f"edgeprune.commands.{name}")
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def raises(error: BaseException) -> Callable[[Any], Any]:
    def command(options: Any) -> Any:
        raise error

    return command


def shell(*words: str, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeprune.cli", *words]
    return subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.DataError("photos: no images"), 1, "error: photos: no images"),
        (errors.UsageError("no such score"), 2, "error: no such score"),
        (errors.BudgetNotMet("the nearest is 0.43"), 3, "error: the nearest is 0.43"),
        (errors.ParityFailed("2 answers flipped"), 4, "error: 2 answers flipped"),
        (errors.MissingHere("no CUDA device"), 5, "error: no CUDA device"),
        (
            errors.Interrupted("stopped at step 7; --resume goes on"),
            130,
            "error: stopped at step 7; --resume goes on",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.onnx"),
            1,
            "error: no space is left on the device",
        ),
        (ValueError("two\nlines"), 1, "error: ValueError: two lines ("),
        (MemoryError(), 1, "error: MemoryError"),
    ],
)
def test_each_error_has_its_code_and_one_line(
    implement: Install, capfd: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    implement("bench", raises(error))
    assert main(["bench", "a.onnx"]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_the_unexpected_points_to_debug_and_debug_shows_it(
    implement: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    implement("bench", raises(ZeroDivisionError("oh")))
    assert main(["bench", "a.onnx"]) == 1
    assert capfd.readouterr().err.endswith("; --debug shows the traceback\n")
    assert main(["bench", "a.onnx", "--debug"]) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ZeroDivisionError: oh (")


@pytest.mark.parametrize(
    ("package", "remedy"),
    [
        ("torch", "pip install 'edgeprune[compress]'"),
        ("onnxruntime", "pip install 'edgeprune[cpu]'"),
        ("jinja2", "pip install 'edgeprune[report]'"),
        ("sklearn.datasets", "pip install 'edgeprune[demo]'"),
        ("mine", "pip install mine"),
    ],
)
def test_a_missing_package_names_its_remedy(
    implement: Install, capfd: pytest.CaptureFixture[str], package: str, remedy: str
) -> None:
    implement("bench", raises(ModuleNotFoundError(f"No module named {package!r}", name=package)))
    assert main(["bench", "a.onnx"]) == 5
    assert capfd.readouterr().err.endswith(f"which is not installed here: {remedy}\n")


def test_our_own_missing_module_is_a_fault_and_not_a_package(
    implement: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    implement("bench", raises(ModuleNotFoundError("No module named 'edgeprune.x'", name="edgeprune.x")))
    assert main(["bench", "a.onnx"]) == 1
    assert "pip install" not in capfd.readouterr().err


def test_json_is_alone_on_stdout(implement: Install, capfd: pytest.CaptureFixture[str]) -> None:
    def chatty(options: Any) -> Result:
        print("a library says hello")
        os.write(1, b"and so does its C code\n")
        return Result({"latency_ms": 1.5, "warnings": ["the clock floats"]})

    implement("bench", chatty)
    assert main(["bench", "a.onnx", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"latency_ms": 1.5, "warnings": ["the clock floats"]}
    assert {"a library says hello", "and so does its C code", "warning: the clock floats"} <= set(
        err.splitlines()
    )


def test_the_options_reach_the_command(implement: Install) -> None:
    seen: list[Any] = []

    def bench(options: Any) -> Result:
        seen.append(options)
        return Result({})

    implement("bench", bench)
    assert (
        main(["bench", "a.onnx", "b.onnx", "--batch", "1,8", "--trust", "m:f", "--trust", "m:g", "--force"])
        == 0
    )
    (options,) = seen
    assert (options.artifacts, options.batch, options.force) == (("a.onnx", "b.onnx"), "1,8", True)
    assert (options.trust, options.threads, options.output) == (("m:f", "m:g"), "1", None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adpt"], "No such command 'adpt'. Did you mean 'adapt'? Try 'edgeprune --help'"),
        (["adapt", "m", "--tarhet", "x"], "--target"),
        (["adapt"], "MODEL"),
        (["adapt", "m", "--steps", "many"], "many"),
        (["bench"], "ARTIFACT"),
    ],
)
def test_words_that_make_no_sense_are_two(
    words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_version_and_the_bare_word(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"edgeprune {edgeprune.__version__}\n"
    assert main([]) == 0
    assert "Usage: edgeprune" in capfd.readouterr().out


def test_a_closed_pipe_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = shell("doctor", "--json", stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = shell("--version", stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no space is left on the device")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_names(name: str) -> None:
    env = {
        **os.environ,
        "_EDGEPRUNE_COMPLETE": f"complete_{name}",
        "_TYPER_COMPLETE_ARGS": "edgeprune adapt m --objective s",
    }
    env |= {
        "COMP_WORDS": "edgeprune adapt m --objective s",
        "COMP_CWORD": "4",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    command = [sys.executable, "-m", "edgeprune.cli"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert "shot" in done.stdout
    assert "mcc" not in done.stdout
