"""The four commands as a user types them: each takes the former's run folder; words, streams, codes, interruptions."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgeprune import records
from edgeprune.cli.app import main
from edgeprune.run import Run

Make = Callable[..., Path]
DIGITS = "edgeprune.digits_net:digits_net"
SMALL = [DIGITS, *shlex.split("--weights none --classes 2 --size 16 --batch 4 --threads 1 --device cpu")]
IMAGES = shlex.split("--source images --target images")
FEW = shlex.split("--steps 3 --source-steps 2")
BENCH = shlex.split("--seconds 0.02 --runs 10 --warmup 0.01")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_images: Make) -> None:
    """A working directory with images/cat and images/dog."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_images(Path("images"), count=4)


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(list(words))
        out = capfd.readouterr()
        return code, out.out, out.err

    return run


Say = Callable[..., tuple[int, str, str]]


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def same(a: str, b: str) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def error(said: tuple[int, str, str], code: int) -> str:
    """The one error line of a command that ended with `code` and printed nothing."""
    assert said[:2] == (code, "")
    lines = [line for line in said[2].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in said[2]
    return lines[0]


def following(text: str) -> list[str]:
    """The words of the next command that a result prints."""
    found = re.search(r"next:\n  edgeprune (.+)", text)
    assert found, text
    return shlex.split(found[1])


def test_each_command_names_the_next(say: Say) -> None:
    code, out, _ = say("adapt", *SMALL, *IMAGES, *FEW, "--evaluate", "images")
    assert code == 0
    assert "Accuracy" in out
    words = following(out)
    assert words == shlex.split("prune runs/adapt-digits_net-1 --target images --macs 0.5")
    code, out, _ = say(*words, "--recover", "1", "--batch", "4", "--json")
    assert code == 0
    slim = json.loads(out)
    assert slim["run"] == "runs/prune-digits_net-1"
    assert slim["macs"] <= 0.5 * slim["dense_macs"]
    assert slim["accuracy"] is None  # only with --evaluate
    code, out, _ = say(*shlex.split(slim["next"])[1:])
    assert code == 0
    words = following(out)
    assert words == ["bench", "runs/prune-digits_net-1/model.onnx"]
    code, out, _ = say(*words, *BENCH, "--json", "-o", "bench.json")
    assert code == 0
    row = json.loads(out)["results"][0]
    assert row["model"]["macs"] == slim["macs"]
    assert row["latency_ms"]["p50"] > 0

    assert "--force replaces it" in error(say("export", "runs/prune-digits_net-1"), 1)
    assert "--force replaces it" in error(say(*words, *BENCH, "-o", "bench.json"), 1)
    line = error(say("prune", "runs/adapt-digits_net-1", "--target", "images", "--macs", "1k"), 3)
    assert re.search(r"the nearest|at least|smallest|can reach", line)
    assert "neither a model nor a file" in error(
        say("prune", "runs/no", "--target", "images", "--macs", "0.5"), 1
    )


def test_names_count_up_and_a_named_folder_is_kept(say: Say) -> None:
    adapt = ["adapt", *SMALL, *IMAGES, *FEW]
    assert [say(*adapt)[0] for _ in range(2)] == [0, 0]
    assert sorted(os.listdir("runs")) == ["adapt-digits_net-1", "adapt-digits_net-2"]
    assert same("runs/adapt-digits_net-1", "runs/adapt-digits_net-2")
    made = weights("runs/adapt-digits_net-1")
    line = error(say(*adapt, "-o", "runs/adapt-digits_net-1"), 1)
    assert "--force replaces it, -o takes another folder" in line
    code, out, err = say(*adapt, "-o", "runs/adapt-digits_net-1", "--resume", "--json")
    assert code == 0, "a queue that starts a finished job again has not failed"
    assert json.loads(out) == records.results(Path("runs/adapt-digits_net-1"))
    assert err.startswith("note: ")
    assert "finished there on" in err
    assert all(torch.equal(made[k], v) for k, v in weights("runs/adapt-digits_net-1").items())
    assert say(*adapt, "-o", "runs/adapt-digits_net-1", "--force", "--seed", "1")[0] == 0
    assert not same("runs/adapt-digits_net-1", "runs/adapt-digits_net-2")


def test_config_is_overruled_by_what_is_typed(say: Say) -> None:
    Path("job.toml").write_text(
        'weights = "none"\nsize = 16\nthreads = 1\n[adapt]\nclasses = "2"\nsteps = 9\nsource_steps = 1\nbatch = 4\n'
        'target = "images"\nsource = "images"\nobjective = "mcc"\nset = { temperature = 2.0 }\n'
    )
    code, out, _ = say("adapt", DIGITS, "--config", "job.toml", "--steps", "2", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["steps"], found["images"]) == (2, 8)
    saved = Path(found["run"], "config.toml").read_text()
    assert "steps = 2\n" in saved
    assert '"temperature=2.0"' in saved
    # What a run saved is itself a configuration.
    code, out, _ = say(
        "adapt", DIGITS, "--config", str(Path(found["run"], "config.toml")), "-o", "again", "--json"
    )
    assert code == 0
    assert same(found["run"], "again")


def test_dry_runs_write_nothing(say: Say) -> None:
    adapt = ["adapt", *SMALL, *IMAGES, *FEW]
    assert say(*adapt, "-o", "dense")[0] == 0
    before = sorted(Path().rglob("*"))
    assert say(*adapt, "--dry-run")[0] == 0
    code, out, _ = say("prune", "dense", "--target", "images", "--macs", "0.5", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["widths"]
    assert say("export", "dense", "--dry-run")[0] == 0
    assert sorted(Path().rglob("*")) == before


def test_wrong_words_say_the_nearest(say: Say) -> None:
    line = error(say("adapt", *SMALL, *IMAGES, "--objective", "mcc", "--set", "temprature=2"), 2)
    assert "did you mean 'temperature'" in line
    assert "did you mean 'mcc'" in error(say("adapt", *SMALL, *IMAGES, "--objective", "mmc"), 2)
    assert "--target is missing" in error(say("adapt", *SMALL), 2)
    assert "--macs 7: expected what is kept" in error(
        say("prune", *SMALL, "--target", "images", "--macs", "7"), 2
    )
    Path("empty").mkdir()
    assert "empty" in error(say("adapt", *SMALL, "--source", "images", "--target", "empty"), 1)
    assert not Path("runs").exists()


def test_a_folder_in_use_is_left_alone(say: Say) -> None:
    with Run.create(Path("busy"), command="adapt", model="x", config={}):
        line = error(say("adapt", *SMALL, *IMAGES, *FEW, "-o", "busy", "--force"), 1)
    assert re.search(r"busy: in use by process \d+ on .*choose another folder with -o", line)


def shell(*words: str, **more: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "edgeprune.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def wait_for(process: "subprocess.Popen[str]", folder: str, stage: str, step: int) -> None:
    """Until the run has written that step of that stage."""
    file, end = Path(folder, "metrics.jsonl"), time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
        if any(row["stage"] == stage and row["step"] >= step for row in rows):
            return
        time.sleep(0.01)
    process.kill()
    raise AssertionError(process.communicate())


@pytest.mark.slow
def test_ctrl_c_in_training_then_resume_equals_an_undisturbed_run(say: Say) -> None:
    adapt = ["adapt", *SMALL, *IMAGES, "--steps", "80", "--source-steps", "2"]
    process = shell(*adapt, "-o", "stopped", "--json")
    wait_for(process, "stopped", "adapt", 20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert re.search(r"error: stopped at step \d+ of 80 \(adapt\); go on with --resume \(stopped\)", err)
    assert "Traceback" not in err
    assert "unfinished run" in error(say(*adapt, "-o", "stopped"), 1)
    assert "steps 80 -> 81" in error(say(*adapt, "-o", "stopped", "--resume", "--steps", "81"), 1)
    assert say(*adapt, "-o", "stopped", "--resume")[0] == 0
    assert "adapt: resumed at step" in Path("stopped/log.txt").read_text()
    assert say(*adapt, "-o", "whole")[0] == 0
    assert same("stopped", "whole")
    assert Path("stopped/metrics.jsonl").read_text() == Path("whole/metrics.jsonl").read_text()


@pytest.mark.slow
def test_kill_9_in_recovery_takes_up_the_cut(say: Say) -> None:
    assert say("adapt", *SMALL, *IMAGES, *FEW, "-o", "dense")[0] == 0
    prune = shlex.split(
        "prune dense --target images --method distill --macs 0.5 --batch 4 --recover 40 --threads 1 --device cpu"
    )
    process = shell(*prune, "-o", "killed")
    wait_for(process, "killed", "recover-1", 60)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert say(*prune, "-o", "killed", "--resume")[0] == 0
    log = Path("killed/log.txt").read_text()
    assert "recover-1: resumed at step" in log
    assert log.count(" cut 1: ") == 1  # made once
    assert say(*prune, "-o", "whole")[0] == 0
    assert same("killed", "whole")


def test_a_full_disk_is_one_line_and_resumable(say: Say) -> None:
    """A real limit on the size of files, which the checkpoint exceeds and the log does not."""
    words = [
        "adapt",
        DIGITS,
        *shlex.split("--weights none --size 16 --threads 1 --device cpu --target images"),
    ]
    words += shlex.split("--objective adabn -o full")
    limit = 300_000
    process = shell(*words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert out == ""
    assert re.search(r"error: full/.*no space left .*what was written before is intact.*--resume", err)
    assert Path("full/config.toml").exists()
    assert not list(Path("full").rglob(".*.part"))
    assert say(*words, "--resume")[0] == 0
    assert weights("full")
