"""Rows of edgeprune bench -> what a page shows of them: one row a way of measuring, and which is the headline.

Two rows are the same way of measuring when the words that describe them agree; a newer one then replaces an older
one, but a row that was compared is kept before one that was not. Numbers of different ways are never mixed unsaid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from edgeprune.report import numbers

Row = Mapping[str, Any]
_RATED = ("steady", "throughput")  # modes in which images a second is a rate of the network


@dataclass(frozen=True, order=True)
class Way:
    """How a row was measured, in words; "" is not known."""

    artefact: str
    device: str
    runtime: str
    mode: str
    batch: str
    threads: str
    input: str

    def sentence(self) -> str:
        """ "ort fp32, steady, batch 1, 1 thread, random input"; the file and the device are not in it."""
        known = (
            self.runtime,
            self.mode,
            f"batch {self.batch}" if self.batch else "",
            f"{self.threads} thread{'' if self.threads == '1' else 's'}" if self.threads else "",
            f"{self.input} input" if self.input else "",
        )
        return ", ".join(part for part in known if part)

    @property
    def of_any(self) -> Way:
        """The same way, of a file of this name in any run folder."""
        return replace(self, artefact=PurePath(self.artefact).name)

    @property
    def plain(self) -> tuple[bool, ...]:
        """What makes it the headline: the larger, the plainer."""
        whole = PurePath(self.artefact).name == "model.onnx"
        return self.mode == "steady", self.batch in ("1", ""), self.threads in ("1", ""), whole


def way(row: Row) -> Way:
    """The words of a row."""
    config = row.get("config") or {}
    return Way(
        str(at(row, "model", "name") or ""),
        machine(row),
        _runtime(config),
        _mode(config),
        _known(config.get("batch")),
        _known(config.get("threads")),
        _known(config.get("input")),
    )


def _known(item: Any) -> str:
    return "" if item is None else str(item)


def _runtime(config: Row) -> str:
    provider = str(config.get("provider") or "").removesuffix("ExecutionProvider")
    words = [config.get("runtime"), provider if provider != "CPU" else "", config.get("precision")]
    words += ["spinning" if config.get("spin_wait") else "", "IO binding" if config.get("io_binding") else ""]
    return " ".join(str(word) for word in words if word)


def _mode(config: Row) -> str:
    mode = str(config.get("mode") or "")
    if mode == "paced" and config.get("fps"):
        return f"paced, {config['fps']:g} frames a second"
    if mode == "throughput" and config.get("streams"):
        return f"throughput, {config['streams']} streams"
    return mode


def machine(row: Row) -> str:
    """What it ran on, in words."""
    host = row.get("host") or {}
    names = [at(host, "cpu", "name"), at(host, "gpu", "name"), host.get("board"), host.get("os")]
    return ", ".join(str(name) for name in names if name)


def newest(rows: Iterable[Row]) -> list[Row]:
    """One row for each way of measuring, in the order in which the ways first came."""
    kept: dict[Way, Row] = {}
    for row in rows:
        here = way(row)
        kept[here] = max(kept.get(here, row), row, key=_worth)
    return list(kept.values())


def _worth(row: Row) -> tuple[bool, str]:
    return bool(row.get("verdict")), str(row.get("created") or "")


def headline(by_run: Sequence[Sequence[Row]]) -> Way | None:
    """The way of measuring that most runs share, of these the plainest: steady, batch 1, one thread, model.onnx."""
    found: dict[Way, list[Row]] = {}
    for rows in by_run:
        for here, row in {way(row).of_any: row for row in rows}.items():
            found.setdefault(here, []).append(row)
    if not found:
        return None
    return max(found, key=lambda w: (len(found[w]), w.plain, max(map(_worth, found[w]))))


def best(rows: Sequence[Row], wanted: Way | None) -> Row:
    """The row measured in the way that is wanted, else the plainest; {} without any."""
    same = [row for row in rows if way(row).of_any == wanted]
    return max(same or rows, key=lambda row: (way(row).plain, _worth(row)), default={})


def line(row: Row, *, several: bool, fed: bool, gpu: bool) -> dict[str, str]:
    """A line of the table, texts by column. several machines; fed with inputs of several kinds; gpu: its own time."""
    here, times = way(row), row.get("latency_ms") or {}
    rate = row.get("throughput_ips") if here.mode.startswith(_RATED) else None
    on_gpu = at(row, "gpu_ms", "p50")
    return {
        "artefact": here.artefact,
        **({"what": here.device} if several else {}),
        "runtime": here.runtime,
        "mode": here.mode,
        "batch": here.batch,
        "threads": here.threads,
        **({"input": here.input} if fed else {}),
        **{key: f"{times[key]:.3g}" if times.get(key) is not None else "" for key in ("p50", "p90", "p99")},
        **({"GPU p50": f"{on_gpu:.3g}" if on_gpu is not None else ""} if gpu else {}),
        "images per second": f"{rate:.4g}" if rate else "",
        "against the baseline": verdict(row.get("verdict")),
    }


def table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The lines of the table, all with the same columns."""
    several = len({machine(row) for row in rows}) > 1
    fed = len({way(row).input for row in rows}) > 1
    gpu = any(at(row, "gpu_ms", "p50") is not None for row in rows)
    return [line(row, several=several, fed=fed, gpu=gpu) for row in rows]


def verdict(found: Row | None) -> str:
    """A comparison in words, with what it was compared with, and why nothing can be said or what was forced."""
    if not found:
        return ""
    said = numbers.verdict(found)
    if found.get("vs"):
        said += f" against {'/'.join(PurePath(str(found['vs'])).parts[-2:])}"
    if found.get("word") not in ("faster", "slower") and found.get("why"):
        said += f": {found['why']}"
    return f"{said}; forced, although {', '.join(found['forced'])}" if found.get("forced") else said


def findings(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What --diagnose found, by artefact: {"artefact", "way", "texts"}."""
    return [
        {
            "artefact": way(row).artefact,
            "way": way(row).sentence(),
            "texts": [str(f["text"]) for f in row["diagnosis"] if isinstance(f, Mapping) and f.get("text")],
        }
        for row in rows
        if row.get("diagnosis")
    ]


def p50(row: Row) -> str:
    """ "2.3 ms (p90 2.5)", or ""."""
    times = row.get("latency_ms") or {}
    if times.get("p50") is None:
        return ""
    tail = f" (p90 {times['p90']:.3g})" if times.get("p90") is not None else ""
    return f"{times['p50']:.3g} ms{tail}"


def at(data: Row, *keys: str) -> Any:
    """The value under nested keys, None where one is missing."""
    found: Any = data
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
