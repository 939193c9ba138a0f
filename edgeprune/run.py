"""A run is a folder that a kill at any moment, a full disk or a second process cannot damage.

    runs/adapt-resnet50-1/  model.safetensors config.toml metrics.jsonl log.txt  (+ resume/ while it works)

`run.json` marks the folder as ours (so `--force` never empties a foreign one), `done.json` a finished run;
`.lock` is held while a process works in it, and `.owner.json` says which. Whole files are written
atomically, the two that grow by whole lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import tomli_w

from edgeprune import records, run_folder
from edgeprune.artifact import write_atomically
from edgeprune.errors import (
    DiskFull,
    EdgePruneError,
    Finished,
    Interrupted,
    MissingHere,
    OutputExists,
    RunError,
    RunLocked,
    UsageError,
)
from edgeprune.records import drop_torn_line, finite, is_done, plain, read_json, saved_config

# What may differ between the call that began a run and the one that resumes it.
_FREE = frozenset(
    {
        "resume",
        "force",
        "output",
        "dry_run",
        "threads",
        "device",
        "cache",
        "config",
        "debug",
        "json",
        "offline",
    }
)


_NOTES = (".images", ".json")  # what a run decided or saw, without which it goes on as well from the start


class Run:
    """An open run folder: a context manager that holds the lock. `resumed`: an earlier process began it."""

    path: Path
    resumed: bool

    def __init__(self, path: Path, command: str, model: str) -> None:
        """Lock `path`, an existing folder; use `Run.create`. RunLocked when another process has it."""
        self.path, self.command, self.model, self.resumed = path, command, model, False
        self._made = False
        self._lock = filelock.FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunLocked(
                f"{path}: in use by {run_folder.owner(path)}; wait for it, stop it, or choose another folder with -o"
            ) from None
        except (OSError, NotImplementedError) as err:
            raise RunError(
                f"{path}: cannot be locked ({err}); choose a folder on a local, writable disk with -o"
            ) from err

    @classmethod
    def create(
        cls,
        path: Path | None,
        *,
        command: str,
        model: str,
        config: Mapping[str, Any],
        force: bool = False,
        resume: bool = False,
    ) -> Run:
        """Make the folder of a new run, take up an unfinished one (`resume`), or replace one (`force`).

        Without a path: runs/<command>-<model>-<n>, the first free n, or with `resume` the last unfinished
        one. `resume` where nothing is starts anew. Errors: OutputExists, Finished (`resume` of a run that is
        done), RunLocked, RunError (another command, model or config), DiskFull.
        """
        if force and resume:
            raise UsageError("--force starts again and --resume goes on: give one of them")
        made = path is None or not path.exists()
        path = path or run_folder.default(command, model, resume)
        run_folder.refuse_foreign(path)
        try:
            with run_folder.writing(path):
                path.mkdir(parents=True, exist_ok=True)
                run = cls(path, command, model)
                run._made = made
        except OSError as err:
            raise MissingHere(
                f"{path}: cannot be made or written ({err.strerror}); choose another with -o"
            ) from err
        try:
            with run_folder.writing(path):
                run._begin(config, force, resume)
        except BaseException:
            run.close()
            raise
        return run

    @property
    def resume_dir(self) -> Path:
        """The folder of snapshots, made on use; it goes when the run finishes."""
        folder = self.path / "resume"
        folder.mkdir(exist_ok=True)
        return folder

    def _begin(self, config: Mapping[str, Any], force: bool, resume: bool) -> None:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        write_atomically(self.path / ".owner.json", json.dumps(owner).encode())
        marker = read_json(self.path / "run.json")
        if marker is not None and resume:
            self._take_up(marker, config)
            return
        if marker is not None:
            if not force:
                raise OutputExists(run_folder.occupied(self.path, marker))
            self._empty()
        write_atomically(
            self.path / "run.json",
            json.dumps({"command": self.command, "model": self.model, "started": _now()}, indent=2).encode(),
        )
        self.save_config(config)
        self.log(f"{self.command} {self.model}: started")

    def _take_up(self, marker: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        was = (marker.get("command"), marker.get("model"))
        if was != (self.command, self.model):
            raise RunError(
                f"{self.path}: was begun as '{was[0]} {was[1]}', now '{self.command} {self.model}'; "
                "resume with the same words"
            )
        saved, now = saved_config(self.path), plain(config)
        changed = sorted(
            k
            for k in {*saved, *now} - _FREE
            if (self.path / "config.toml").exists() and saved.get(k) != now.get(k)
        )
        if changed:
            pairs = ", ".join(f"{k} {saved.get(k)!r} -> {now.get(k)!r}" for k in changed)
            raise RunError(
                f"{self.path}: began with other settings ({pairs}); resume with the same, "
                "or start again with --force"
            )
        if is_done(self.path):
            done = read_json(self.path / "done.json") or {}
            raise Finished(run_folder.occupied(self.path, marker), dict(done.get("results") or {}))
        self.resumed = True
        for name in ("metrics.jsonl", "log.txt"):
            drop_torn_line(self.path / name)
        _drop_parts(self.path)
        self.save_config(config)
        self.log(f"{self.command} {self.model}: resumed")

    def _empty(self) -> None:
        # done.json goes first and run.json stays: a kill in between leaves an unfinished run, ours to take.
        (self.path / "done.json").unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.name in run_folder.OURS or entry.name == "run.json":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def log(self, text: str) -> None:
        """Append a line with the time (UTC) to log.txt."""
        self._append("log.txt", f"{_now()} {' '.join(text.splitlines())}\n")

    def metric(self, **values: Any) -> None:
        """Append one JSON line to metrics.jsonl; numbers that are not finite become null."""
        self._append("metrics.jsonl", json.dumps(finite(values), allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl so far."""
        return records.metrics(self.path)

    @property
    def metrics_position(self) -> int:
        """Bytes of metrics.jsonl: keep it in a snapshot, and give it to `rewind_metrics` on resume."""
        file = self.path / "metrics.jsonl"
        return file.stat().st_size if file.exists() else 0

    def rewind_metrics(self, position: int) -> None:
        """Forget the metric lines written after a snapshot, which the resumed steps will write again."""
        if position < self.metrics_position:
            os.truncate(self.path / "metrics.jsonl", position)

    def write(self, name: str, data: bytes) -> Path:
        """Write a whole file of the run, atomically; DiskFull leaves the earlier one as it was."""
        target = self.path / name
        with run_folder.writing(target):
            write_atomically(target, data)
        return target

    def save_config(self, config: Mapping[str, Any]) -> Path:
        """Write config.toml: the resolved options; None is left out, paths become strings."""
        return self.write("config.toml", tomli_w.dumps(plain(config)).encode())

    def finish(self, results: Mapping[str, Any] | None = None) -> None:
        """Mark the run as finished, with its results (JSON values), and remove resume/."""
        done = {
            "command": self.command,
            "model": self.model,
            "finished": _now(),
            "results": finite(dict(results or {})),
        }
        self.write("done.json", json.dumps(done, indent=2).encode())
        shutil.rmtree(self.path / "resume", ignore_errors=True)
        self.log(f"{self.command} {self.model}: finished")

    def close(self) -> None:
        """Let other processes have the folder."""
        (self.path / ".owner.json").unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with contextlib.suppress(OSError, DiskFull):
                self.log(f"stopped: {type(error).__name__}: {error}")
        if isinstance(error, EdgePruneError) and not isinstance(error, Interrupted | DiskFull):
            self._withdraw()
        self.close()
        with contextlib.suppress(OSError):  # only where nothing of a run is left, and we made it
            if self._made and not (self.path / "run.json").exists():
                (self.path / ".lock").unlink(missing_ok=True)
                self.path.rmdir()

    def _withdraw(self) -> None:
        """Leave no run that a corrected command would stumble over, where nothing was made that could go on."""
        resume = self.path / "resume"
        noted = list(resume.iterdir()) if resume.is_dir() and not self.resumed else []
        if all(entry.suffix in _NOTES for entry in noted):  # no snapshot is among them
            for entry in noted:
                entry.unlink()
        with contextlib.suppress(OSError):
            resume.rmdir()
        ours = {"run.json", "config.toml", "log.txt", "metrics.jsonl", "layer-table.json"}
        begun = {entry.name for entry in self.path.iterdir()} - run_folder.OURS
        if not self.resumed and begun <= ours:
            for name in begun:
                (self.path / name).unlink()

    def _append(self, name: str, line: str) -> None:
        target = self.path / name
        with run_folder.writing(target), target.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            data = line.encode()
            try:
                # A write may be cut short by a full disk; the rest then raises, and the half line goes.
                while data:
                    data = data[file.write(data) or 0 :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), before)
                raise


def _drop_parts(path: Path) -> None:
    for part in path.rglob(".*.part"):
        part.unlink(missing_ok=True)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
