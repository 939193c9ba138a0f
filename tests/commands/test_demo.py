"""demo: all four commands on small stand-ins for the digits; it replaces only what an earlier demo wrote."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune import records
from edgeprune.commands import demo as demos
from edgeprune.commands.demo import demo
from edgeprune.data import digits
from edgeprune.device_options import BenchOptions, DemoOptions
from edgeprune.errors import OutputExists, RunError, UsageError

Make = Callable[..., Path]
TEN = tuple("0123456789")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, make_images: Make) -> None:
    """Twenty images a set, a few steps, and a short measurement."""

    def write(root: Path) -> None:
        if not root.exists():
            make_images(root, TEN, 2)

    from edgeprune.commands.bench import bench

    def quick(options: BenchOptions) -> Any:
        return bench(replace(options, seconds=0.02, runs=10, warmup=0.01))

    monkeypatch.setattr(digits, "write_mnist", write)
    monkeypatch.setattr(digits, "write_optdigits", write)
    monkeypatch.setattr(demos, "bench", quick)
    monkeypatch.setattr(demos, "SOURCE_STEPS", 10)
    monkeypatch.setattr(demos, "ADAPT_STEPS", 10)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_table_the_page_and_what_force_and_resume_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = DemoOptions(output=tmp_path / "demo", quick=True, device="cpu")
    root = tmp_path / "demo"
    found = demo(options)
    before, adapted, slim = found.table
    assert before.accuracy is not None
    assert adapted.macs is not None
    assert slim.macs is not None
    assert slim.macs <= 0.4 * adapted.macs
    assert slim.parity is not None
    assert slim.parity.startswith("0 flips of 20")
    assert slim.speedup
    assert found.report == root / "report.html"
    assert "<html" in found.report.read_text()
    assert found.to_json()["report"] == str(found.report)

    with pytest.raises(OutputExists, match="--force runs the demo again in its place, --resume goes on"):
        demo(options)
    with pytest.raises(RunError, match="resume with the same, or start again with --force"):
        demo(replace(options, resume=True, macs="0.3"))
    made = (root / "adapt" / "model.safetensors").stat().st_mtime_ns
    (root / "prune" / "done.json").unlink()  # as after a kill just before the end
    again = demo(replace(options, resume=True))
    assert (root / "adapt" / "model.safetensors").stat().st_mtime_ns == made
    assert again.table[2].accuracy == slim.accuracy
    assert records.is_done(root / "prune")

    (root / "notes.txt").write_text("mine")
    monkeypatch.setattr(demos, "_digits", stop)
    with pytest.raises(InterruptedError):
        demo(replace(options, force=True))
    assert sorted(p.name for p in root.iterdir()) == ["demo.json", "notes.txt"]


def stop(root: Path) -> Any:
    raise InterruptedError


def test_a_foreign_folder_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "adapt").mkdir()
    (tmp_path / "adapt" / "thesis.tex").write_text("years")
    for force, resume in ((False, False), (True, False), (False, True)):
        with pytest.raises(OutputExists, match=r"no demo of edgeprune \(adapt\); choose another with -o"):
            demo(DemoOptions(output=tmp_path, force=force, resume=resume))
    assert (tmp_path / "adapt" / "thesis.tex").read_text() == "years"
    with pytest.raises(OutputExists, match="a file is there"):
        demo(DemoOptions(output=tmp_path / "adapt" / "thesis.tex", force=True))


def test_words_are_checked_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    with pytest.raises(UsageError, match="--macs 7: expected what is kept"):
        demo(DemoOptions(output=root, macs="7"))
    with pytest.raises(UsageError, match="give one of them"):
        demo(DemoOptions(output=root, force=True, resume=True))
    assert demo(DemoOptions(output=root, dry_run=True)).report is None
    assert not root.exists()
