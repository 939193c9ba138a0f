import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune import artifact, records
from edgeprune.errors import (
    DiskFull,
    Finished,
    Interrupted,
    MissingHere,
    OutputExists,
    RunError,
    RunLocked,
    UsageError,
)
from edgeprune.records import is_done, results
from edgeprune.run import Run


def start(path: Path | None, **more: Any) -> Run:
    return Run.create(path, **{"command": "adapt", "model": "timm:resnet18", "config": {"steps": 9}, **more})


def finished(path: Path) -> Path:
    with start(path) as run:
        run.write("model.safetensors", b"weights")
        run.finish({"accuracy": 0.5})
    return path


def test_what_a_run_leaves(tmp_path: Path) -> None:
    with start(
        tmp_path / "r", config={"steps": 9, "target": Path("a/b"), "set": ("x=1",), "plan": None}
    ) as run:
        run.log("two\nlines")
        run.metric(step=1, loss=np.float32(0.25), bad=float("nan"), many=np.arange(2), path=Path("p"))
        (run.resume_dir / "snapshot").write_bytes(b"1")
        run.write("model.safetensors", b"weights")
        run.finish({"accuracy": np.float64(0.5)})
    assert sorted(p.name for p in run.path.iterdir() if p.name != ".lock") == [
        "config.toml",
        "done.json",
        "log.txt",
        "metrics.jsonl",
        "model.safetensors",
        "run.json",
    ]
    assert run.metrics() == [{"step": 1, "loss": 0.25, "bad": None, "many": [0, 1], "path": "p"}]
    assert records.saved_config(run.path) == {"steps": 9, "target": "a/b", "set": ["x=1"]}
    assert "two lines\n" in (run.path / "log.txt").read_text()
    assert is_done(run.path)
    assert results(run.path) == {"accuracy": 0.5}


def test_default_names_count_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for model in (
        "timm:resnet18",
        "torchvision:resnet18",
        "runs/adapt-resnet18-1/",
        "pack.age:net",
        "x/net.safetensors",
    ):
        with start(None, model=model) as run:
            names.append(run.path.as_posix())
    assert names == [f"runs/adapt-{n}" for n in ("resnet18-1", "resnet18-2", "resnet18-3", "net-1", "net-2")]
    with start(None, model="pack.age:net", resume=True) as run:
        assert (run.path.as_posix(), run.resumed) == ("runs/adapt-net-1", True)


def test_resume_without_a_path_takes_the_last_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start(None).close()
    finished(Path("runs/adapt-resnet18-2"))
    with start(None, resume=True) as run:
        assert (run.path.name, run.resumed) == ("adapt-resnet18-1", True)
        run.finish()
    with start(None, resume=True) as run:
        assert (run.path.name, run.resumed) == ("adapt-resnet18-3", False)


def test_a_finished_run_is_not_overwritten_or_resumed(tmp_path: Path) -> None:
    path = finished(tmp_path / "r")
    told = r"'adapt timm:resnet18' finished there on .*--force replaces it"
    with pytest.raises(OutputExists, match=told):
        start(path)
    with pytest.raises(Finished, match=told) as done:
        start(path, resume=True)
    assert done.value.results == {"accuracy": 0.5}
    with pytest.raises(RunError, match="began with other settings"):
        start(path, resume=True, config={"steps": 10})
    assert (path / "model.safetensors").read_bytes() == b"weights"
    with start(path, force=True) as run:
        assert not (path / "model.safetensors").exists()
        assert not is_done(path)
        assert not run.resumed


def test_an_unfinished_run_offers_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with start(path) as run:
        run.metric(step=1)
    with pytest.raises(
        OutputExists, match=r"unfinished run .*--resume goes on with it, --force starts again"
    ):
        start(path)
    with start(path, resume=True) as run:
        assert run.resumed
        assert run.metrics() == [{"step": 1}]
    with start(path, force=True) as run:
        assert run.metrics() == []


def test_resume_wants_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "r"
    start(path, config={"steps": 9, "threads": 1}).close()
    with pytest.raises(RunError, match="steps 9 -> 10"):
        start(path, config={"steps": 10, "threads": 1}, resume=True)
    with pytest.raises(RunError, match="begun as 'adapt timm:resnet18', now 'prune timm:resnet18'"):
        start(path, command="prune", resume=True)
    with start(path, config={"steps": 9, "threads": 2, "resume": True}, resume=True) as run:
        assert run.resumed
    with pytest.raises(UsageError, match="give one of them"):
        start(path, force=True, resume=True)


def test_resume_where_nothing_is_starts(tmp_path: Path) -> None:
    with start(tmp_path / "r", resume=True) as run:
        assert not run.resumed


@pytest.mark.parametrize("how", [{}, {"force": True}, {"resume": True}])
def test_a_foreign_folder_is_never_touched(tmp_path: Path, how: dict[str, bool]) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(OutputExists, match=r"no run of edgeprune \(thesis.tex\); choose another with -o"):
        start(tmp_path, **how)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(OutputExists, match="a file is there; expected a folder"):
        start(tmp_path / "thesis.tex", **how)


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MissingHere, match="cannot be made or written"):
        start(tmp_path / "file" / "r")


HOLD = """
import sys, time
from pathlib import Path
from edgeprune.run import Run
with Run.create(Path(sys.argv[1]), command="adapt", model="timm:resnet18", config={"steps": 9},
                resume="--resume" in sys.argv) as run:
    step = len(run.metrics())
    print("ready", step, run.resumed, flush=True)
    while True:
        run.metric(step=step, text="x" * 3000)
        run.write("resume/state.json", b'{"step": %d}' % step + b" " * 200_000)
        step += 1
"""


def hold(path: Path, *more: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *more], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    return process


def test_a_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    import socket

    process = hold(tmp_path / "r")
    try:
        for how in ({}, {"force": True}, {"resume": True}):
            with pytest.raises(
                RunLocked, match=f"in use by process {process.pid} on {socket.gethostname()} since 20"
            ):
                start(tmp_path / "r", **how)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("wait", [0.0, 0.03, 0.11])
def test_kill_9_leaves_a_folder_that_resumes(tmp_path: Path, wait: float) -> None:
    path, steps = tmp_path / "r", 0
    for more in ([], ["--resume"], ["--resume"]):
        process = hold(path, *more)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with (path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 1, "te')  # as a kill inside a long line would leave it
        (path / ".model.safetensors.1.part").write_bytes(b"half")
        with start(path, resume=True) as run:
            lines = run.metrics()
            assert [line["step"] for line in lines] == list(range(len(lines)))
            assert len(lines) >= steps
            assert not list(path.rglob("*.part"))
            steps = len(lines)
            if (path / "resume/state.json").exists():
                assert json.loads((path / "resume/state.json").read_text())["step"] <= steps
    with start(path, force=True) as run:
        assert run.metrics() == []


def test_a_kill_in_any_place_of_create_leaves_a_usable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace
    for after in range(3):
        path, count = tmp_path / f"r{after}", 0

        def replace(a: Any, b: Any) -> None:
            nonlocal count
            if count == after:  # noqa: B023
                raise KeyboardInterrupt
            count += 1
            real(a, b)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            start(path)
        monkeypatch.setattr(os, "replace", real)
        with start(path, resume=True) as run:
            run.metric(step=0)
        with start(path, force=True) as run:
            assert run.metrics() == []


def test_rewinding_forgets_what_will_be_written_again(tmp_path: Path) -> None:
    with start(tmp_path / "r") as run:
        run.metric(step=0)
        position = run.metrics_position
        run.metric(step=1)
        run.rewind_metrics(position)
        run.metric(step=1, again=True)
        assert run.metrics() == [{"step": 0}, {"step": 1, "again": True}]


LIMITED = """
import resource, signal, sys
from pathlib import Path
from edgeprune.errors import DiskFull
from edgeprune.run import Run
with Run.create(Path(sys.argv[1]), command="adapt", model="m", config={}) as run:
    run.write("model.safetensors", b"old")
    run.metric(step=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    for work in (lambda: run.write("model.safetensors", b"n" * 6000), lambda: run.metric(text="x" * 6000)):
        try:
            work()
        except DiskFull as err:
            print(err)
"""


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "r"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert "model.safetensors: no space left to write it" in lines[0]
    assert "what was written before is intact: free some space, then go on with --resume" in lines[0]
    assert (path / "model.safetensors").read_bytes() == b"old"
    assert records.metrics(path) == [{"step": 0}]
    assert (path / "metrics.jsonl").read_bytes().endswith(b"}\n")
    assert not list(path.glob("*.part"))


def test_a_full_disk_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("edgeprune.run.write_atomically", full)
    with pytest.raises(DiskFull, match="No space left on device"):
        start(tmp_path / "r")
    monkeypatch.setattr("edgeprune.run.write_atomically", artifact.write_atomically)
    start(tmp_path / "r").close()  # and the lock is free


def test_an_error_is_logged_and_the_lock_is_free(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), start(tmp_path / "r"):
        raise ValueError("boom")
    assert "stopped: ValueError: boom" in (tmp_path / "r" / "log.txt").read_text()
    start(tmp_path / "r", resume=True).close()


@pytest.mark.parametrize(
    ("error", "stays"),
    [(UsageError("wrong"), False), (Interrupted("stop"), True), (RuntimeError("a bug"), True)],
)
def test_a_refusal_before_anything_was_made_leaves_no_folder(
    tmp_path: Path, error: Exception, stays: bool
) -> None:
    for made in (False, True):
        place = tmp_path / str(made)
        run = start(place)
        if made:
            run.resume_dir.joinpath("snapshot").write_bytes(b"1")
        run.write("resume/adapt.images", b"{}")  # what a run saw or measured is no work that could go on
        run.write("layer-table.json", b"{}")
        with pytest.raises(type(error)), run:
            raise error
        assert place.exists() == (stays or made)


def test_a_folder_that_was_there_stays_when_a_run_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    with pytest.raises(UsageError), start(place):
        raise UsageError("wrong")
    assert place.is_dir()
    start(place).close()


def test_helpful_errors_of_reading(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a finished run \(no done.json\)"):
        results(tmp_path)
    (tmp_path / "config.toml").write_text("= broken")
    with pytest.raises(RunError, match="not TOML"):
        records.saved_config(tmp_path)
