"""Threads, wait policy and allocator are set before CPU libraries load; what the user has set stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgeprune
from edgeprune.cli import startup
from edgeprune.device_options import BenchOptions, InspectOptions
from edgeprune.options import AdaptOptions

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    own: dict[str, str] = {}
    monkeypatch.setattr("os.environ", own)
    monkeypatch.setattr(startup, "keep_memory", lambda: True)
    return own


def test_training_waits_passively_on_the_threads_asked_for(environment: dict[str, str]) -> None:
    startup.prepare("adapt", AdaptOptions(threads=3))
    assert [environment[v] for v in VARIABLES] == ["3", "PASSIVE", "0"]


def test_all_cores_by_default(environment: dict[str, str]) -> None:
    startup.prepare("inspect", InspectOptions())
    assert environment["OMP_NUM_THREADS"] == str(startup.cores())
    assert startup.cores() >= 1


def test_bench_measures_what_a_plain_program_would_see(environment: dict[str, str]) -> None:
    startup.prepare("bench", BenchOptions(threads="1,2"))
    assert {v: environment[v] for v in VARIABLES if v in environment} == {"OMP_NUM_THREADS": "2"}


def test_the_environment_stays_and_a_flag_is_more_explicit(environment: dict[str, str]) -> None:
    environment |= {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "ACTIVE"}
    startup.prepare("adapt", AdaptOptions())
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("5", "ACTIVE")
    startup.prepare("adapt", AdaptOptions(threads=1))
    assert environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_the_allocator_keeps_what_it_has() -> None:
    code = """
import resource
from edgeprune.cli import startup
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        b"x" * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
assert startup.keep_memory(), "no glibc"
faults()
kept = faults()
print(plain, kept)
"""
    root = Path(edgeprune.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("no glibc")
    plain, kept = map(int, done.stdout.split())
    assert plain > 20_000
    assert kept < plain / 100


def test_the_allocator_is_left_alone_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_NO_MALLOPT", "1")
    assert not startup.keep_memory()
