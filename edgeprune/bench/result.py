"""One measured row, as a versioned JSON document: what ran, on what, how, and what came out.

A value that could not be had is null, and `reasons` says why under its dotted name ("power", "host.gpu");
it is never 0. MACs are work, not speed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeprune.bench.compare import Verdict
from edgeprune.bench.statistics import Latency
from edgeprune.errors import DataError, UsageError

SCHEMA = "edgeprune.bench/1"
"""Of a row."""
DOCUMENT = "edgeprune.bench-results/1"
"""Of what `edgeprune bench --json` prints and -o writes: {"schema": ..., "results": [rows], ...}."""
MUST_AGREE: Mapping[str, str] = {
    "batch": "batch",
    "mode": "mode",
    "fps": "frames a second",
    "threads": "threads",
    "transfers": "copies to the device in the time",
    "streams": "streams",
    "device": "device",
    "input": "input",
}
"""Settings without which two latencies are different quantities, and what a sentence calls them."""
IF_BOTH: Mapping[str, str] = {
    "spin_wait": "spinning threads (--spin)",
    "provider": "provider",
    "io_binding": "--io-binding",
    "cuda_graph": "CUDA graph",
}
"""Settings that must agree where both runtimes have them."""
_OF_A_MODE = ("fps", "streams")


@dataclass(frozen=True)
class Measured:
    """What was measured: a file. macs and params as count.py has them, at batch 1; inputs as its runtime has them."""

    name: str
    sha256: str = ""
    parents: tuple[str, ...] = ()
    bytes: int | None = None
    macs: int | None = None
    params: int | None = None
    inputs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class BenchResult:
    """A row. config: runtime, precision, batch, mode, threads, input, seed, the runner's settings.

    parts_ms: what the latency is made of, by name (load, first; enqueue, h2d, d2h). rounds_ms: the median of each
    round, in the order measured (at full load, milliseconds a call). layers: the operators as they ran. diagnosis: what
    holds it back against its baseline. throughput_ips: images a second, None where there is no such rate.
    """

    model: Measured
    config: Mapping[str, Any]
    host: Mapping[str, Any]
    latency_ms: Latency
    throughput_ips: float | None
    tool_version: str
    created: str
    clocks: Mapping[str, Any] | None = None
    gpu_ms: Latency | None = None
    memory: Mapping[str, Any] | None = None
    power: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] | None = None
    layers: tuple[Mapping[str, Any], ...] | None = None
    warnings: tuple[str, ...] = ()
    verdict: Verdict | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    parts_ms: Mapping[str, Latency] | None = None
    rounds_ms: tuple[float, ...] = ()
    diagnosis: tuple[Mapping[str, Any], ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the schema's name first."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"schema": SCHEMA, **plain}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> BenchResult:
        """Read what `to_json` wrote; DataError names the schema found or the field at fault."""
        if data.get("schema") != SCHEMA:
            raise DataError(
                f"schema {data.get('schema')!r}: expected {SCHEMA!r}; measure again with this version"
            )
        fields = {k: v for k, v in data.items() if k != "schema"}
        try:
            model = dict(fields["model"])
            fields["model"] = Measured(
                **{**model, "parents": tuple(model["parents"]), "inputs": tuple(model["inputs"])}
            )
            fields["latency_ms"] = Latency.from_json(fields["latency_ms"])
            fields["gpu_ms"] = (
                Latency.from_json(fields["gpu_ms"]) if fields.get("gpu_ms") is not None else None
            )
            fields["verdict"] = (
                Verdict.from_json(fields["verdict"]) if fields.get("verdict") is not None else None
            )
            fields["warnings"] = tuple(fields.get("warnings", ()))
            for key in ("layers", "diagnosis"):
                fields[key] = tuple(fields[key]) if fields.get(key) is not None else None
            fields["rounds_ms"] = tuple(fields.get("rounds_ms", ()))
            if fields.get("parts_ms") is not None:
                fields["parts_ms"] = {k: Latency.from_json(v) for k, v in fields["parts_ms"].items()}
            return BenchResult(**fields)
        except (KeyError, TypeError, AttributeError, ValueError) as err:
            raise DataError(f"not a result of edgeprune bench: {err}") from err


def differences(one: BenchResult, other: BenchResult) -> list[str]:
    """What makes two results different quantities, each as "batch 1 against 8"."""
    return [
        *config_differences(one.config, other.config),
        *input_differences(one.model.inputs, other.model.inputs),
        *host_differences(one.host, other.host),
    ]


def host_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What makes two machines different ones."""
    pairs = {key: (_name(one.get(key)), _name(other.get(key))) for key in ("cpu", "gpu", "board")}
    return [
        f"{key} {_told(left)} against {_told(right)}" for key, (left, right) in pairs.items() if left != right
    ]


def input_differences(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[str]:
    """Inputs of other sizes, the batch and the order of the axes aside; nothing where one side tells none."""
    if not one or not other or _sizes(one) == _sizes(other):
        return []
    return [f"input of {' and '.join(_sizes(one))} against {' and '.join(_sizes(other))}"]


def _sizes(inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        "x".join(sorted(map(str, i["shape"][1:]), key=lambda d: (len(d), d))) or "one number" for i in inputs
    ]


def config_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The part of `differences` that two measurements on one machine can have."""
    both = {k: name for k, name in IF_BOTH.items() if one.get(k) is not None and other.get(k) is not None}
    named = {
        k: name
        for k, name in {**MUST_AGREE, **both}.items()
        if k not in _OF_A_MODE or one.get("mode") == other.get("mode")
    }
    return [
        f"{name} {_told(one.get(key))} against {_told(other.get(key))}"
        for key, name in named.items()
        if one.get(key) != other.get(key)
    ]


def require_comparable(one: BenchResult, other: BenchResult, *, force: bool = False) -> None:
    """UsageError when two results must not be compared, unless forced."""
    if not force:
        require_alike(one.model.name, other.model.name, differences(one, other))


def require_alike(one: str, other: str, found: list[str]) -> None:
    """UsageError that lists what `differences` found between two named things; nothing found is nothing said."""
    if found:
        raise UsageError(
            f"{one} and {other} are not comparable: {'; '.join(found)}; "
            "measure them alike, or give --force-compare"
        )


def _told(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name(part: Any) -> Any:
    return part.get("name") if isinstance(part, Mapping) else part
