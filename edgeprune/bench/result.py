"""One measured row, as a versioned JSON document: what ran, on what, how, and what came out.

A value that could not be had is null, and `reasons` says why under its dotted name ("power", "host.gpu");
it is never 0. MACs are work, not speed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeprune.bench.compare import Verdict
from edgeprune.bench.statistics import Latency
from edgeprune.errors import DataError, UsageError

SCHEMA = "edgeprune.bench/1"
MUST_AGREE = ("batch", "mode", "threads", "transfers", "spin_wait", "provider", "streams", "device")
"""Settings without which two latencies are different quantities."""


@dataclass(frozen=True)
class Measured:
    """What was measured: a file. macs and params as count.py has them, at batch 1."""

    name: str
    sha256: str = ""
    parents: tuple[str, ...] = ()
    bytes: int | None = None
    macs: int | None = None
    params: int | None = None
    inputs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class BenchResult:
    """A row. config: runtime, precision, batch, mode, threads, input, seed, the runner's settings."""

    model: Measured
    config: Mapping[str, Any]
    host: Mapping[str, Any]
    latency_ms: Latency
    throughput_ips: float
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
            fields["layers"] = tuple(fields["layers"]) if fields.get("layers") is not None else None
            return BenchResult(**fields)
        except (KeyError, TypeError, AttributeError, ValueError) as err:
            raise DataError(f"not a result of edgeprune bench: {err}") from err


def differences(one: BenchResult, other: BenchResult) -> list[str]:
    """What makes two results different quantities, each as "batch 1 against 8"."""
    found = []
    for key in MUST_AGREE:
        left, right = one.config.get(key), other.config.get(key)
        if left != right:
            found.append(f"{key} {left} against {right}")
    for key in ("cpu", "gpu", "board"):
        left, right = _name(one.host.get(key)), _name(other.host.get(key))
        if left != right:
            found.append(f"{key} {left} against {right}")
    return found


def require_comparable(one: BenchResult, other: BenchResult, *, force: bool = False) -> None:
    """UsageError when two results must not be compared, unless forced."""
    if not force and (found := differences(one, other)):
        raise UsageError(
            f"{one.model.name} and {other.model.name} are not comparable: {'; '.join(found)}; "
            "measure them alike, or give --force"
        )


def _name(part: Any) -> Any:
    return part.get("name") if isinstance(part, Mapping) else part
