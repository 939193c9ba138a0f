"""Every method under every kind of budget: the ceiling holds, and a latency is met as measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune import catalog
from edgeprune.bench import layers
from edgeprune.commands.prune import PruneResult, prune
from edgeprune.errors import UsageError
from edgeprune.options import PruneOptions
from tests.commands.test_layers import Clock
from tests.prune.test_pair_times import macs_of

SHARE = 0.6
WORDS = {"params": "0.6", "channels": "0.6", "latency": "0.6x"}


@pytest.fixture(autouse=True)
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which time is MACs: layers and networks alike."""
    monkeypatch.setattr(layers, "layer_ms", lambda path, threads, scratch: macs_of(path) * 1e-6)
    monkeypatch.setattr("edgeprune.commands.timing.Stopwatch", Clock)


def pruned(options: PruneOptions, name: str, kind: str, *, dry: bool) -> PruneResult:
    bare = replace(
        options,
        method=name,
        macs=None,
        iterations=None if dry else 2,
        schedule=None,
        multiple=4,
        recover=1.0,
        score="magnitude",
    )
    source = options.source if "source" in catalog.METHODS[name].needs else None
    wanted: dict[str, Any] = {kind: WORDS[kind]}
    return prune(replace(bare, source=source, dry_run=dry, **wanted))


@pytest.mark.parametrize("kind", ["params", "channels"])  # macs: each method's own tests
@pytest.mark.parametrize("name", catalog.METHODS)
def test_the_ceiling_holds(name: str, kind: str, options: PruneOptions) -> None:
    if (name, kind) == ("dalr", "channels"):  # it cuts none
        with pytest.raises(UsageError, match="takes --macs, --params or --latency"):
            pruned(options, name, kind, dry=True)
        return
    found = pruned(options, name, kind, dry=True)
    now, dense = getattr(found, kind), getattr(found, f"dense_{kind}")
    assert 0.5 * SHARE * dense < now <= SHARE * dense


@pytest.mark.parametrize("name", catalog.METHODS)
def test_latency_is_met(name: str, options: PruneOptions, tmp_path: Path) -> None:
    found = pruned(options, name, "latency", dry=False)
    assert found.latency is not None
    assert 0.95 <= found.latency["of_requested"] <= 1.02
    assert found.macs == pytest.approx(1e6 * found.latency["measured_ms"])
