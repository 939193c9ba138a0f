"""Words are parsed, one library function is called, its result printed; one object owns the exit code.

Typer only parses: a command's callback returns a `Request`, which runs here, outside the parser. The module
`edgeprune.commands.<name>` is imported when its command runs, after a check of what needs no network. Stdout holds the
result and nothing else; whatever a library prints while it works goes to stderr.

Exit codes: those of edgeprune.errors; 2 for words that make no sense; 141 when the reader of stdout is gone.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import itertools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import typer

from edgeprune import errors
from edgeprune.cli import options, startup
from edgeprune.cli.options import COMMANDS, Request

PIPE_CLOSED = 141  # 128 + SIGPIPE, as other programs of a pipeline report it

# What is imported -> the extra that brings it. Everything else that EdgePrune imports is in the base.
_EXTRAS = {
    "torch": "compress",
    "torchvision": "compress",
    "timm": "compress",
    "torch_pruning": "compress",
    "lightning_fabric": "compress",
    "onnxscript": "compress",
    "onnxslim": "compress",
    "onnxruntime": "cpu",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "cuda": "cuda",
    "pycuda": "pycuda",
    "matplotlib": "report",
    "jinja2": "report",
    "sklearn": "demo",
    "mlxtend": "demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program on `argv` (sys.argv by default) and return its exit code."""
    return Program(list(sys.argv[1:] if argv is None else argv)).run()


class Program:
    """One call of `edgeprune`: it alone decides the exit code and writes the error line."""

    def __init__(self, words: list[str]) -> None:
        self.words = words or ["--help"]
        own = self.words[: self.words.index("--")] if "--" in self.words else self.words
        self.debug = "--debug" in own

    def run(self) -> int:
        """Parse, work, print; every way to fail ends in one line on stderr and a code."""
        try:
            code = self._run()
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            _forget_stdout()
            return PIPE_CLOSED
        except (KeyboardInterrupt, Exception) as err:
            known = meaning(err)
            return self._fail(str(known), known.exit_code) if known else self._unexpected(err)

    def _run(self) -> int:
        request = self._parse()
        if isinstance(request, int):
            return request
        if not self.debug and not sys.warnoptions:
            # Libraries' notes to their own programmers; a command's warnings are part of its result.
            warnings.simplefilter("ignore")
        startup.prepare(request.command, request.options)
        note = ""
        with stdout_to_stderr():
            try:
                facts: dict[str, Any] = _result(request).to_json()
            except errors.Finished as done:  # a job that is queued again is no failure
                note, facts = str(done), done.results
        if not int(
            os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0
        ):  # of several processes one speaks
            if note:
                print(f"note: {note}", file=sys.stderr)  # noqa: T201
            self._print(request, facts)
        return 0

    def _parse(self) -> Request | int:
        """What is asked, or the exit code when the parser has answered itself (help, version, completion)."""
        try:
            answer = self._understood()
        except PARSER_ERRORS as err:
            raise errors.UsageError(_one_line(err, self.words)) from err
        except typer.Exit as err:
            return int(err.exit_code)
        except typer.Abort:
            return errors.Interrupted.exit_code
        return answer if isinstance(answer, Request) else int(answer or 0)

    def _understood(self) -> Any:
        """The parser's answer; what knobs there are (--set help) can be asked before there is a model."""
        command = typer.main.get_command(options.application())
        how: dict[str, Any] = {"prog_name": "edgeprune", "standalone_mode": False}
        try:
            return command.main(args=self.words, **how)
        except PARSER_ERRORS as err:
            asked = "--set=help" in self.words or ("--set", "help") in itertools.pairwise(self.words)
            if not asked or getattr(getattr(err, "param", None), "name", None) != "model":
                raise
            after = 1 + next(i for i, word in enumerate(self.words) if word in COMMANDS)
            return command.main(args=[*self.words[:after], "MODEL", *self.words[after:]], **how)

    def _print(self, request: Request, facts: dict[str, Any]) -> None:
        for warning in facts.get("warnings", ()):
            print(f"warning: {warning}", file=sys.stderr)  # noqa: T201
        if request.json:
            json.dump(facts, sys.stdout, indent=2, default=str)
            sys.stdout.write("\n")
            return
        from rich.console import Console

        words(request.command).show(facts, Console())

    def _fail(self, message: str, code: int) -> int:
        if self.debug and sys.exc_info()[0] is not None:
            traceback.print_exc()
        line = " ".join(message.split())
        with contextlib.suppress(OSError):
            print(f"error: {line}", file=sys.stderr)  # noqa: T201
        return code

    def _unexpected(self, err: BaseException) -> int:
        frames = traceback.extract_tb(err.__traceback__)
        ours = [f for f in frames if "edgeprune" in f.filename] or frames
        place = f" ({os.path.basename(ours[-1].filename)}, line {ours[-1].lineno})" if ours else ""
        hint = "" if self.debug else "; --debug shows the traceback"
        return self._fail(f"{type(err).__name__}: {err}{place}{hint}", 1)


# Typer has carried its own copy of click since 0.20-odd and used click before: the class above its own
# BadParameter that formats messages is the parser's root error in both.
PARSER_ERRORS: tuple[type[Exception], ...] = tuple(
    c for c in typer.BadParameter.__mro__ if issubclass(c, Exception) and hasattr(c, "format_message")
)


def words(command: str) -> ModuleType:
    """The module edgeprune.cli.<command>: examples, and how the result is shown."""
    return importlib.import_module(f"edgeprune.cli.{command}")


def _result(request: Request) -> Any:
    from edgeprune.commands import early, knobs  # not before `startup.prepare`: they load numpy

    if "help" in getattr(request.options, "set", ()):
        return knobs.of(request.options)
    early.check(request.options)
    return _implementation(request.command)(request.options)


def _implementation(command: str) -> Any:
    if command not in COMMANDS:
        raise errors.UsageError(f"no command is called {command!r}: {errors.nearest(command, COMMANDS)}")
    return getattr(importlib.import_module(f"edgeprune.commands.{command}"), command)


def meaning(err: BaseException) -> errors.EdgePruneError | None:
    """The error that an exception means to the user; None when the fault is our own."""
    if isinstance(err, errors.EdgePruneError):
        return err
    if isinstance(err, KeyboardInterrupt):
        return errors.Interrupted("interrupted")
    if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return errors.DiskFull(f"no space is left on the device: {err}")
    return _missing(err) if isinstance(err, ModuleNotFoundError) else None


def _missing(err: ModuleNotFoundError) -> errors.MissingHere | None:
    """A package that is not installed here, with the remedy."""
    top = (err.name or "").partition(".")[0]
    if not top or top == "edgeprune":
        return None
    if top in _EXTRAS:
        return errors.missing_package(top, _EXTRAS[top], "this command")
    return errors.MissingHere(f"this command needs {top}, which is not installed here: pip install {top}")


def _one_line(err: Any, said: list[str]) -> str:
    message = str(err.format_message()).rstrip()
    opts = getattr(getattr(err, "param", None), "opts", ())
    received = [word for flag, word in itertools.pairwise(said) if flag in opts]
    if received and received[-1] not in message:
        message = f"{message.rstrip('.')}; received {received[-1]!r}"
    command = next((w for w in said if w in COMMANDS), "")
    stop = "" if message.endswith((".", "?", ")")) else "."
    return f"{message}{stop} Try 'edgeprune {command + ' ' if command else ''}--help'"


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """While inside, what Python and C code write to stdout goes to stderr."""
    sys.stdout.flush()
    with contextlib.redirect_stdout(sys.stderr):
        try:
            saved = os.dup(1)
            os.dup2(2, 1)
        except OSError:  # one of the two is closed: nothing to keep apart
            yield
            return
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 1)
            os.close(saved)


def _forget_stdout() -> None:
    # Or the interpreter flushes it once more at exit and complains.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
