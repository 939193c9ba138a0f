"""The dataclasses of edgeprune.options as Typer commands: each option is defined there, once, not here.

Added to every command: --config, --json, --debug. A command's callback returns a `Request` and does no work.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

import edgeprune
from edgeprune import catalog
from edgeprune import device_options as device
from edgeprune import options as library

# In the order of work; `--help` keeps it.
COMMANDS: Mapping[str, type] = {
    "adapt": library.AdaptOptions,
    "prune": library.PruneOptions,
    "export": device.ExportOptions,
    "bench": device.BenchOptions,
    "predict": device.PredictOptions,
    "inspect": device.InspectOptions,
    "report": device.ReportOptions,
    "doctor": device.DoctorOptions,
    "demo": device.DemoOptions,
}

# Fields whose values are names of a catalogue: listed in the help and completed by the shell.
NAMES: Mapping[str, Mapping[str, catalog.Entry]] = {
    "objective": catalog.OBJECTIVES,
    "score": catalog.SCORES,
    "method": catalog.METHODS,
    "runtime": catalog.RUNTIMES,
}

_EVERYWHERE = "Everywhere"
_PANELS = ("Images", "Budget (what is kept)", "Training", "Model", "Run")
_METAVARS = {bool: "", int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Request:
    """What the user asked: the command, its options, and whether the answer is JSON."""

    command: str
    options: Any
    json: bool = False


def application() -> typer.Typer:
    """All commands, ready to parse."""
    app = typer.Typer(
        name="edgeprune",
        help="One unlabelled folder of images in, one small verified model for the device out.",
        epilog="\n\n".join(
            (
                "Start here:  edgeprune demo",
                "What is installed:  edgeprune doctor",
                "Exit codes: 0 done, 1 error, 2 usage, 3 budget not met, 4 parity failed or a broken model, "
                "5 something is missing here, 130 interrupted.",
            )
        ),
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name, cls in COMMANDS.items():
        examples = importlib.import_module(f"edgeprune.cli.{name}").EXAMPLES
        epilog = "\n\n".join(("Examples:", *(f"  {e}" for e in examples)))
        app.command(name, help=inspect.getdoc(cls), epilog=epilog)(callback(name, cls))
    return app


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"edgeprune {edgeprune.__version__}")
        raise typer.Exit(0)


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """What stands before the command."""


def callback(name: str, cls: type) -> Callable[..., Request]:
    """A function whose signature is the fields of `cls`, as Typer reads it; it returns the Request."""

    def command(**values: Any) -> Request:
        as_json = values.pop("as_json")
        values.pop("config")
        values.pop("debug")
        frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Request(name, cls(**frozen), as_json)

    parameters = [_parameter(f, hint) for f, hint in sorted(typed_fields(cls), key=_panel)]
    parameters += [_keyword("config", Path | None, None, _config_option(name))]
    parameters += [
        _keyword(
            "as_json", bool, False, _flag("--json", "Print the result as JSON, and nothing else, on stdout.")
        ),
        _keyword(
            "debug", bool, False, _flag("--debug", "Show the traceback of an error, and libraries' warnings.")
        ),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def typed_fields(cls: type) -> list[tuple[Field[Any], Any]]:
    """The fields of an options dataclass with their resolved types."""
    hints = typing.get_type_hints(cls)
    return [(f, hints[f.name]) for f in fields(cls)]


def _panel(typed: tuple[Field[Any], Any]) -> int:
    """What a command is about comes first; what all commands share comes last."""
    panel = typed[0].metadata.get("panel")
    return _PANELS.index(panel) if panel in _PANELS else -1


def is_many(hint: Any) -> bool:
    """Whether a field takes several values."""
    return typing.get_origin(hint) is tuple


def single(hint: Any) -> type:
    """The type of one value: `Path | None` -> Path, `tuple[str, ...]` -> str."""
    inner = [t for t in typing.get_args(hint) if t not in (type(None), Ellipsis)]
    return typing.cast(type, inner[0] if inner else hint)


def flags(field: Field[Any], hint: Any) -> tuple[str, ...]:
    """The words that set a field; a switch has both, so that a flag can overrule the config file."""
    if given := field.metadata.get("flags"):
        return tuple(given)
    word = field.name.replace("_", "-")
    return (f"--{word}/--no-{word}",) if hint is bool else (f"--{word}",)


def _parameter(field: Field[Any], hint: Any) -> inspect.Parameter:
    kind = list[str] if is_many(hint) else hint
    default = None if field.default is MISSING else field.default
    help_text = _help(field)
    if field.metadata.get("argument"):
        metavar = field.metadata.get("metavar") or field.name.upper().rstrip("S" if is_many(hint) else "")
        word = typer.Argument(
            help=help_text, metavar=metavar + ("..." if is_many(hint) else ""), show_default=False
        )
        empty = ... if field.metadata.get("required", True) else default
        return _keyword(field.name, kind, empty, word)
    option = typer.Option(
        *flags(field, hint),
        help=help_text,
        metavar=field.metadata.get("metavar") or _METAVARS[single(hint)],
        rich_help_panel=field.metadata.get("panel", "Options"),
        show_default=default is not None and default is not False and default != (),
        autocompletion=_completer(field.name),
        parser=_share if field.metadata.get("metavar") == "SHARE" else None,
    )
    return _keyword(field.name, kind, list(default) if isinstance(default, tuple) else default, option)


def _share(text: Any) -> float:
    """ "0.01" or "1%" -> 0.01."""
    word = str(text).strip()
    return float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)


def _keyword(name: str, kind: Any, default: Any, word: Any) -> inspect.Parameter:
    empty = inspect.Parameter.empty if default is ... else default
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=empty, annotation=Annotated[kind, word]
    )


def _help(field: Field[Any]) -> str:
    text = str(field.metadata.get("help", ""))
    return f"{text} Names: {', '.join(NAMES[field.name])}." if field.name in NAMES else text


def _completer(field: str) -> Callable[[str], list[tuple[str, str]]] | None:
    if field not in NAMES:
        return None

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(n, e.summary) for n, e in NAMES[field].items() if n.startswith(incomplete)]

    return complete


def _flag(word: str, help_text: str) -> Any:
    return typer.Option(word, help=help_text, metavar="", rich_help_panel=_EVERYWHERE)


def _config_option(command: str) -> Any:
    def read(ctx: typer.Context, value: Path | None) -> Path | None:
        if value is not None:
            from edgeprune.cli import config

            ctx.default_map = {**(ctx.default_map or {}), **config.read(value, command)}
        return value

    return typer.Option(
        "--config",
        "-c",
        help="TOML file with options by name; a section may hold one command's. What is typed here wins.",
        metavar="FILE",
        is_eager=True,
        callback=read,
        rich_help_panel=_EVERYWHERE,
    )
