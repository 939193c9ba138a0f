"""`edgeprune report`: run folders -> one self-contained HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune import artifact
from edgeprune.commands import outputs
from edgeprune.device_options import ReportOptions
from edgeprune.errors import DataError, UsageError


@dataclass(frozen=True)
class ReportResult:
    """Where the page is."""

    file: Path
    runs: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"file": str(self.file), "runs": self.runs, "bytes": self.bytes}


def report(options: ReportOptions) -> ReportResult:
    """Write the page: into the only run's folder, or where `output` says."""
    if not options.runs:
        raise UsageError("nothing to report: give run folders, such as: edgeprune report runs/*")
    runs = [Path(word) for word in options.runs]
    for run in runs:
        if not (run / "run.json").is_file():
            raise DataError(f"{run}: not a run folder of edgeprune; expected what adapt or prune wrote")
    file = options.output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    outputs.require([file], options.force or not options.output)
    return write(runs, file)


def write(runs: list[Path], file: Path) -> ReportResult:
    """Render the page about `runs` into `file`, atomically."""
    from edgeprune.report import page

    data = page.render(runs).encode()
    artifact.write_atomically(file, data)
    return ReportResult(file, len(runs), len(data))
