"""A stand-in for the builder's half of a TensorRT release: it has the names that the committed table gives to it.

A name that the release has not raises AttributeError, as there; every setting is kept, so a test reads what was asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgeprune.runtime import trt

TABLE = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text())


class Strict:
    """Holds what is set on it, if the release has such a name."""

    def __init__(self, owner: str, release: str, **held: Any) -> None:
        self.__dict__["_names"] = (owner, release)
        self.__dict__["set"] = {}
        self.__dict__.update({k: v for k, v in held.items() if has(release, owner, k)})

    def __setattr__(self, name: str, value: Any) -> None:
        owner, release = self.__dict__["_names"]
        if not has(release, owner, name):
            raise AttributeError(f"{owner} of {release} has no {name}")
        self.__dict__["set"][name] = value


def has(release: str, owner: str, name: str) -> bool:
    """Whether the table does not say that the release lacks it; a name not in the table is not in use."""
    return TABLE[release]["names"].get(f"{owner}.{name}", False) is not False


def enum(release: str, owner: str) -> Any:
    """The members of an enumeration that the release has."""
    return IntEnum(owner, [(m, i) for i, m in enumerate(trt.MEMBERS[owner]) if has(release, owner, m)])


def module(release: str, *, cores: int = 2, errors: Sequence[Any] = ()) -> tuple[Any, Any]:
    """The module and the log of what was asked: flags, config, profiles, the caches written."""
    log = SimpleNamespace(flags=None, enabled=[], limits=[], shapes=[], cache=None, monitored=[])
    names = TABLE[release]["names"]
    tensor = SimpleNamespace(name="images", shape=(-1, 3, 8, 8), dtype="DataType.FLOAT")
    network = SimpleNamespace(
        num_inputs=1, num_outputs=1, get_input=lambda i: tensor, get_output=lambda i: tensor
    )
    timing = SimpleNamespace(serialize=lambda: b"timings of " + release.encode())

    def taken(data: bytes) -> Any:
        log.cache = data
        return timing

    log.config = Strict(
        "IBuilderConfig",
        release,
        set_memory_pool_limit=lambda pool, size: log.limits.append(size),
        set_flag=lambda flag: log.enabled.append(flag.name),
        add_optimization_profile=lambda profile: 0,
        create_timing_cache=taken,
        set_timing_cache=lambda cache, ignore_mismatch: True,
        get_timing_cache=lambda: timing,
    )

    def build(made: Any, config: Any) -> bytes:
        if monitor := config.set.get("progress_monitor"):
            monitor.phase_start("Building", None, 4)
            for step in range(4):
                monitor.step_complete("Building", step)
            monitor.phase_finish("Building")
        return b"ftrt"

    def network_of(flags: int) -> Any:
        log.flags = flags
        return network

    profile = SimpleNamespace(set_shape=lambda name, *sizes: log.shapes.append((name, sizes)))
    builder = Strict(
        "Builder",
        release,
        num_DLA_cores=cores,
        create_network=network_of,
        create_builder_config=lambda: log.config,
        create_optimization_profile=lambda: profile,
        build_serialized_network=build,
    )
    parser = SimpleNamespace(
        parse_from_file=lambda path: not errors, num_errors=len(errors), get_error=lambda i: errors[i]
    )
    made = SimpleNamespace(
        __version__=release,
        ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2}),
        Builder=lambda logger: builder,
        OnnxParser=lambda given, logger: parser,
        **{
            owner: enum(release, owner)
            for owner in trt.MEMBERS
            if owner not in ("ILogger", "IProgressMonitor")
        },
    )
    if names["IProgressMonitor"]:
        made.IProgressMonitor = type("IProgressMonitor", (), {})
    return made, log
