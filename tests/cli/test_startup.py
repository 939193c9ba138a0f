"""Threads and wait policy are set before CPU libraries load; what the user has set stays."""

from __future__ import annotations

import pytest

from edgeprune.cli import startup
from edgeprune.device_options import BenchOptions, InspectOptions
from edgeprune.options import AdaptOptions

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    own: dict[str, str] = {}
    monkeypatch.setattr("os.environ", own)
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
