"""A TOML file with options -> defaults of one command. Keys are field names; `[adapt]` holds adapt's alone.

A key at the top may be for any command, so one file can serve several; a key that no command knows, or of
the wrong type, is an error that names the file, the key and the nearest. Paths start at the working
directory, as those typed do.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.cli.options import COMMANDS, is_many, single, typed_fields
from edgeprune.errors import UsageError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Types = Mapping[str, Any]


def read(path: Path, command: str) -> dict[str, Any]:
    """The options that `path` holds for `command`; UsageError for what it cannot mean."""
    data = _load(path)
    known = {name: {f.name: hint for f, hint in typed_fields(cls)} for name, cls in COMMANDS.items()}
    anywhere = {key: hint for hints in known.values() for key, hint in hints.items()}
    own = known[command]
    top: dict[str, Any] = {}
    section: dict[str, Any] = {}
    for key, value in data.items():
        if key in COMMANDS and isinstance(value, Mapping):
            checked = _checked(value, known[key], f"{path} [{key}]")
            section = checked if key == command else section
        else:
            top |= _checked({key: value}, anywhere, str(path))
    return {key: value for key, value in {**top, **section}.items() if key in own}


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise UsageError(f"--config {path}: {err.strerror}; expected a TOML file") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise UsageError(f"--config {path}: not TOML: {err}") from err


def _checked(values: Mapping[str, Any], types_: Types, where: str) -> dict[str, Any]:
    """Values by field name, of the fields' types; `dry-run` is read as `dry_run`."""
    found = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in types_:
            raise UsageError(f"--config {where}: no option is called {key!r}: {nearest(name, types_)}")
        found[name] = _value(value, types_[name], f"--config {where}: {key}")
    return found


def _value(value: Any, hint: Any, where: str) -> Any:
    if is_many(hint):
        if isinstance(value, Mapping):  # [prune.set] as a table of knobs
            return [f"{k}={_plain(v)}" for k, v in value.items()]
        return [_plain(v) for v in (value if isinstance(value, list) else [value])]
    wanted = single(hint)
    if wanted is str and isinstance(value, list) and all(_number(v) for v in value):
        return ",".join(map(str, value))  # mean = [0.5, 0.5, 0.5]
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: _number(value),
        str: isinstance(value, str) or _number(value),
        Path: isinstance(value, str),
    }
    if not fits[wanted]:
        raise UsageError(f"{where}: {value!r} is a {type(value).__name__}; expected {_NAMES[wanted]}")
    return str(value) if wanted is str else value


_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path as a string",
}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
