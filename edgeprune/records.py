"""What a run folder remembers, read and written as plain values: settings, metrics, results.

Must read a folder that another process is writing, or that was killed in the middle of a line.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.errors import RunError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def is_done(path: Path) -> bool:
    """Say whether a run folder is that of a finished run."""
    return read_json(path / "done.json") is not None


def results(path: Path) -> dict[str, Any]:
    """The results of a finished run; RunError when it has not finished or is no run."""
    done = read_json(path / "done.json")
    if done is None:
        raise RunError(f"{path}: not a finished run (no done.json); finish it with --resume")
    return dict(done.get("results", {}))


def metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a run's metrics.jsonl; a torn last line, still being written, is left out."""
    file = path / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def saved_config(path: Path) -> dict[str, Any]:
    """The resolved options of a run; empty when there are none."""
    try:
        return tomllib.loads((path / "config.toml").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise RunError(f"{path / 'config.toml'}: not TOML ({err}); start again with --force") from err


def drop_torn_line(file: Path) -> None:
    """Cut what follows the last newline: a kill came in the middle of a line."""
    if file.exists():
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; None when there is no file, {} when it is damaged."""
    try:
        data = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        return {}
    return data if isinstance(data, dict) else {}


def finite(value: Any) -> Any:
    """Turn arrays, paths and tuples into JSON values; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> Any:
    """Turn options into TOML values: None is left out, paths become strings, tuples arrays."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
