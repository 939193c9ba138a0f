"""`edgeprune report`: where the page goes, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.commands.report import report
from edgeprune.device_options import ReportOptions
from edgeprune.errors import DataError, MissingHere, OutputExists, UsageError

pytest.importorskip("jinja2")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has just begun."""
    path = tmp_path / "adapt-net-1"
    path.mkdir()
    (path / "run.json").write_text('{"command": "adapt", "model": "net"}')
    return path


def test_the_page_of_one_run_lies_in_it_and_is_written_again(run: Path) -> None:
    for _ in range(2):
        assert report(ReportOptions(runs=(str(run),))).file == run / "report.html"


def test_helpful_errors(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    cases = [
        (ReportOptions(), UsageError, "nothing to report"),
        (ReportOptions(runs=(str(tmp_path),)), DataError, "not a run folder of edgeprune"),
        (ReportOptions(runs=(str(run),), output=page), OutputExists, "page.html exists; --force replaces it"),
        (
            ReportOptions(runs=(str(run),), output=tmp_path),
            UsageError,
            "is a folder; expected the name of a file",
        ),
        (
            ReportOptions(runs=(str(run),), output=Path("/proc/x/page.html")),
            MissingHere,
            "/proc/x/page.html: cannot",
        ),
    ]
    for options, kind, text in cases:
        with pytest.raises(kind, match=text):
            report(options)
    assert page.read_text() == "mine"
