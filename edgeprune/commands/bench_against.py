"""What `edgeprune bench` compares with: a network measured beside the others, or the rows of an earlier measurement.

Unlike things are refused before the first is timed; --force-compare goes on, and the verdict says what was unlike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.bench.compare import Verdict, compare, compare_saved
from edgeprune.bench.measure import Samples
from edgeprune.bench.result import (
    BenchResult,
    config_differences,
    host_differences,
    input_differences,
    require_alike,
)
from edgeprune.commands import bench_check
from edgeprune.commands.bench_open import Opened, Setting, settings_of
from edgeprune.device_options import BenchOptions
from edgeprune.errors import DataError

Unlike = Mapping[str, tuple[str, ...]]
"""Word -> what makes it another quantity than its baseline, where the user forced the comparison."""


@dataclass(frozen=True)
class Baseline:
    """word: measured beside the others. rows: of an earlier measurement. Neither: nothing to compare with."""

    word: str | None = None
    rows: tuple[BenchResult, ...] = ()

    def row(self, config: Mapping[str, Any]) -> BenchResult:
        """The earlier row of the same batch and threads, else the first."""
        same = [r for r in self.rows if all(r.config.get(k) == config.get(k) for k in ("batch", "threads"))]
        return (same or list(self.rows))[0]


def read(options: BenchOptions) -> Baseline:
    """What --baseline names; DataError for a JSON file that bench did not write."""
    earlier = bench_check.saved_file(options)
    return Baseline(rows=tuple(saved(earlier))) if earlier else Baseline(options.baseline)


def saved(path: Path) -> list[BenchResult]:
    """The rows of a JSON file that bench wrote with -o, or printed with --json; DataError for another file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        why = "no such file" if isinstance(err, FileNotFoundError) else f"cannot be read ({err.strerror})"
        raise DataError(f"--baseline {path}: {why}; expected what bench -o wrote") from err
    except ValueError as err:
        raise DataError(f"--baseline {path}: is not JSON ({err}); expected what bench -o wrote") from err
    rows = found.get("results") if isinstance(found, Mapping) else found
    if not isinstance(rows, list) or not rows or not all(isinstance(r, Mapping) for r in rows):
        raise DataError(f"--baseline {path}: holds no rows; expected what bench -o wrote")
    return [BenchResult.from_json(r) for r in rows]


def require_settings(options: BenchOptions, baseline: Baseline, settings: Sequence[Setting]) -> None:
    """UsageError when an earlier measurement has not what the command line asks for; nothing is opened."""
    if not baseline.rows or options.force_compare:
        return
    for setting in settings:
        asked = settings_of(options, setting)
        one = baseline.row(asked)
        known = {key: one.config.get(key) for key in asked}
        require_alike(one.model.name, "what is asked for", config_differences(known, asked))


def unlike(
    options: BenchOptions, baseline: Baseline, opened: Mapping[str, Opened], host: Mapping[str, Any]
) -> Unlike:
    """What is unlike between each artefact and its baseline, all opened and none measured; UsageError unless forced."""
    found: dict[str, tuple[str, ...]] = {}
    for word, one in opened.items():
        if baseline.rows:
            row = baseline.row(one.config)
            name, config, inputs = row.model.name, row.config, row.model.inputs
            elsewhere = host_differences(row.host, host)
        elif baseline.word and word != baseline.word:
            beside = opened[baseline.word]
            name, config, inputs, elsewhere = beside.name, beside.config, beside.inputs, []
        else:
            continue
        apart = [*config_differences(config, one.config), *input_differences(inputs, one.inputs), *elsewhere]
        if not options.force_compare:
            require_alike(name, one.name, apart)
        found[word] = tuple(apart)
    return found


def beside(
    options: BenchOptions, baseline: Baseline, samples: Mapping[str, Samples], word: str
) -> Verdict | None:
    """The verdict of a network against the one measured beside it; None for that one itself, or without any."""
    if baseline.word is None or word == baseline.word:
        return None
    sides = samples[baseline.word].for_comparing(), samples[word].for_comparing()
    return compare(*sides, vs=baseline.word, seed=options.seed)


def before(options: BenchOptions, baseline: Baseline, row: BenchResult) -> Verdict | None:
    """The verdict of a row against the earlier one; None where there is no earlier measurement."""
    if not baseline.rows:
        return None
    one = baseline.row(row.config)
    return compare_saved(
        one.rounds_ms,
        row.rounds_ms,
        vs=f"{one.model.name} of {one.created}",
        p50_ms=None if options.mode == "throughput" else (one.latency_ms.p50, row.latency_ms.p50),
        seed=options.seed,
    )


def judged(row: BenchResult, verdict: Verdict | None, apart: Sequence[str]) -> BenchResult:
    """A row with its verdict; where that was forced, both say so."""
    if verdict is None:
        return row
    said = f"compared by force with what is unlike it ({'; '.join(apart)}): the ratio says nothing of the network"
    return replace(
        row,
        verdict=replace(verdict, forced=tuple(apart)),
        warnings=(*row.warnings, said) if apart else row.warnings,
    )
