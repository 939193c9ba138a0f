"""Every TensorRT name in use against the installed tensorrt_rtx and against four published releases of tensorrt."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from edgeprune.runtime import trt

TABLE = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text())
RELEASES = sorted(TABLE, key=lambda word: [int(part) for part in word.split(".")[:2]])
GONE_IN_RTX = ("FP16", "INT8", "EXPLICIT_BATCH", "device_memory_size")


def all_names() -> list[tuple[str, str]]:
    return [(owner, name) for owner, names in trt.names().items() for name in names]


def test_the_table_covers_the_releases_and_the_names() -> None:
    assert [r.rsplit(".", len(r.split(".")) - 2)[0] for r in RELEASES] == ["8.6", "10.3", "10.16", "11.4"]
    for release in RELEASES:
        named = TABLE[release]["names"]
        assert {f"{o}.{n}" for o, n in all_names()} <= set(named), "run benchmarks/tensorrt_names.py again"


def test_installed_rtx_has_every_name_in_its_class() -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed (extra: rtx)")
    import tensorrt_rtx

    for owner, name in all_names():
        held = hasattr(getattr(tensorrt_rtx, owner), name)
        assert held is (name not in GONE_IN_RTX), f"{owner}.{name}"


@pytest.mark.parametrize("release", RELEASES)
def test_what_stands_behind_no_switch_is_in_every_release(release: str) -> None:
    named = TABLE[release]["names"]
    for owner, name in all_names():
        if not trt.optional(owner, name):
            assert named[owner] is not False, f"{owner} is not in {release}"
            assert named[f"{owner}.{name}"] is not False, f"{owner}.{name} is not in {release}"


def test_what_stands_behind_a_switch_is_missing_somewhere() -> None:
    for word in trt.OPTIONAL:
        held = {release: TABLE[release]["names"][word] for release in RELEASES}
        member = word.partition(".")[2]
        assert not all(held.values()) or member in GONE_IN_RTX, f"{word} is everywhere: {held}"
        if trt.OPTIONAL[word].startswith("not in 8.6"):
            assert held["8.6.1"] is False, word
            assert all(held[r] for r in RELEASES[1:]), word
