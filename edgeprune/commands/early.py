"""What can be refused before torch is loaded, which takes seconds: unknown names, paths that are not there.

Must say what the command itself would say later, and import nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune import catalog, images, run_folder
from edgeprune.errors import OutputExists, UsageError
from edgeprune.options import AdaptOptions, PruneOptions
from edgeprune.records import read_json

_IMAGES = ("target", "source", "evaluate", "labelled_target")
_NAMES: Mapping[str, Mapping[str, catalog.Entry]] = {
    "objective": catalog.OBJECTIVES,
    "method": catalog.METHODS,
    "score": catalog.SCORES,
}


def check(options: Any) -> None:
    """UsageError, DataError or OutputExists for what the options of `adapt` and `prune` get wrong."""
    if not isinstance(options, AdaptOptions | PruneOptions):
        return
    for field, table in _NAMES.items():
        name = getattr(options, field, None)
        if isinstance(name, str) and name not in ("", "none"):
            catalog.entry(table, name, field)
    for field in _IMAGES:
        path = getattr(options, field, None)
        if isinstance(path, Path) and not path.exists():
            raise images.missing(path)
    if options.force and options.output is not None and options.output.is_dir():
        model = Path(options.model)
        if model.exists() and (model if model.is_dir() else model.parent).samefile(options.output):
            raise UsageError(
                f"--force would empty {options.output}, which holds the model itself, before the new one is made; "
                "choose another folder with -o"
            )
    writes = not (options.force or options.dry_run or getattr(options, "export_stats", None))
    if writes and options.output is not None and options.output.is_dir():
        marker = read_json(options.output / "run.json")
        if marker is not None and not options.resume:
            raise OutputExists(run_folder.occupied(options.output, marker))
