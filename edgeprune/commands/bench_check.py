"""What `edgeprune bench` refuses before it measures: words that make no sense, or that nothing would heed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeprune import catalog
from edgeprune.commands import bench_open
from edgeprune.commands.bench_open import Setting
from edgeprune.device_options import BenchOptions
from edgeprune.errors import UsageError, nearest

MODES = ("steady", "paced", "cold", "throughput")
FASTEST = 10_000  # frames a second
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def require_artifacts(options: BenchOptions) -> None:
    """UsageError when there is nothing to measure."""
    if not options.artifacts:
        raise UsageError(
            "nothing to measure: ARTIFACT... is missing; give ONNX files or run folders, such as: "
            "edgeprune bench runs/slim"
        )


def import_alone(options: BenchOptions) -> None:
    """UsageError for what an import, with nothing to measure beside it, would leave out."""
    asked = {
        "--baseline": options.baseline,
        "--diagnose": options.diagnose,
        "--per-layer": options.per_layer,
        "--power": options.power,
        "--evaluate": options.evaluate,
    }
    for flag, value in asked.items():
        if value:
            raise UsageError(
                f"{flag} needs something to measure, and --import-trtexec only shows what trtexec measured: "
                "give ARTIFACT... beside it, or leave it out"
            )


def check(options: BenchOptions) -> None:
    """UsageError for the first word that makes no sense; files are not opened."""
    require_artifacts(options)
    if options.mode not in MODES:
        raise UsageError(f"--mode {options.mode}: expected one of {', '.join(MODES)}")
    known = ("auto", *catalog.RUNTIMES)
    if options.runtime not in known:
        raise UsageError(f"--runtime {options.runtime}: {nearest(options.runtime, known)}")
    if options.device is not None and not _DEVICE.fullmatch(options.device):
        raise UsageError(f"--device {options.device}: expected cpu, cuda or cuda:N")
    _numbers(options)
    _heeded(options)
    if options.diagnose and (options.baseline is None or saved_file(options)):
        raise UsageError(
            "--diagnose compares layers: give the dense network as --baseline, as an ONNX file or a run"
        )
    if options.diagnose and options.mode != "steady":
        raise UsageError(
            f"--diagnose explains latency call after call, not --mode {options.mode}: leave one of the two out"
        )


def _numbers(options: BenchOptions) -> None:
    for flag, seconds in (("--seconds", options.seconds), ("--warmup", options.warmup)):
        if not 0 <= seconds < math.inf:
            raise UsageError(f"{flag} {seconds:g}: expected a number of seconds, 0 or more")
    if options.runs < 1:
        raise UsageError(f"--runs {options.runs}: expected 1 or more")
    if options.seed < 0:
        raise UsageError(f"--seed {options.seed}: expected 0 or a positive number")
    if options.fps is not None and not 0 < options.fps <= FASTEST:
        raise UsageError(
            f"--fps {options.fps:g}: expected frames a second, above 0 and at most {FASTEST:,}, such as 30"
        )
    if options.streams is not None and options.streams < 1:
        raise UsageError(f"--streams {options.streams}: expected 1 or more")
    if options.power is not None and not 0 < options.power < math.inf:
        raise UsageError(f"--power {options.power:g}: expected seconds of load above 0, such as 10")


def _heeded(options: BenchOptions) -> None:
    """UsageError for an option that the mode, or another option, would leave out."""
    for flag, value, mode in (("--fps", options.fps, "paced"), ("--streams", options.streams, "throughput")):
        if value is not None and options.mode != mode:
            raise UsageError(
                f"{flag} {value:g} is for --mode {mode}, not {options.mode}: leave one of the two out"
            )
    if options.images and options.input:
        raise UsageError(
            f"--images {options.images} and --input {options.input} are two inputs: leave one of the two out"
        )


def runtimes(options: BenchOptions, words: Sequence[str]) -> None:
    """UsageError for an option of a runtime that none of the artefacts is run by; errors of `bench_open.find`."""
    used = {bench_open.find(options, word)[1] for word in words}
    same = options.device == "cpu" and used == {"ort"} and options.provider == "cpu"
    if options.device and not used & set(bench_open.TORCH) and not same:
        raise UsageError(
            f"--device {options.device} is for checkpoints run by torch, and nothing here is: "
            "ONNX Runtime takes --provider cuda; an engine runs on the GPU it was built for"
        )
    asked = {"--io-binding": options.io_binding, "--spin": options.spin}
    given = [f"--provider {options.provider}"] if options.provider != "cpu" else []
    for flag in (*given, *(flag for flag, on in asked.items() if on)):
        if "ort" not in used:
            raise UsageError(
                f"{flag} is for ONNX files run by ONNX Runtime, and nothing here is: leave it out"
            )


def two_sides(options: BenchOptions) -> None:
    """UsageError when the baseline is all that there is to measure."""
    if options.baseline and not saved_file(options):
        beside = Path(options.baseline).resolve()
        if all(Path(word).resolve() == beside for word in options.artifacts):
            raise UsageError(
                f"--baseline {options.baseline} is the artefact itself: name another one to compare with "
                "(a copy of the file shows the noise)"
            )


def saved_file(options: BenchOptions) -> Path | None:
    """The JSON file that --baseline names, None when it names something to measure."""
    return Path(options.baseline) if options.baseline and options.baseline.endswith(".json") else None


def sweep(options: BenchOptions) -> Iterator[Setting]:
    """Every batch with every number of threads."""
    for batch in _counts("--batch", "sizes", options.batch, 1, "1 or 1,8"):
        for threads in _counts("--threads", "numbers", options.threads, 0, "1 or 1,2; 0 is all cores"):
            yield Setting(batch, threads)


def _counts(flag: str, what: str, text: str, least: int, example: str) -> list[int]:
    try:
        found = [int(part) for part in str(text).split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise UsageError(f"{flag} {text!r}: expected {what} such as {example}")
    return list(dict.fromkeys(found))
