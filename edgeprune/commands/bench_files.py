"""What `edgeprune bench` writes: the JSON, CSV and Markdown files asked for, and a line in the history of each run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune import artifact, records
from edgeprune.bench import flat
from edgeprune.bench.result import BenchResult
from edgeprune.device_options import BenchOptions

HISTORY = "bench.jsonl"


def write(options: BenchOptions, rows: Sequence[BenchResult], document: Mapping[str, Any]) -> None:
    """Write the files that were asked for, each atomically; `document` is all of it, as --json prints it."""
    if options.output:
        text = json.dumps(document, indent=2)
        artifact.write_atomically(options.output, text.encode())
    if options.csv:
        artifact.write_atomically(options.csv, flat.to_csv(rows).encode())
    if options.markdown:
        artifact.write_atomically(options.markdown, flat.to_markdown(rows).encode())


def remember(file: Path, row: BenchResult) -> str:
    """Append a row to bench.jsonl of the run folder that the measured file is in; a warning when that fails, else "".

    Nothing is written where the folder is not a run's.
    """
    folder = file.parent
    if not any((folder / name).is_file() for name in ("run.json", "done.json")):
        return ""
    path = folder / HISTORY
    try:
        if path.is_file():
            records.drop_torn_line(path)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row.to_json()) + "\n")
    except OSError as err:
        return f"{path}: not appended to ({err.strerror or err})"
    return ""
