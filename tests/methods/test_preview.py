"""A dry run shows each method's own plan, as far as it can be known without training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgeprune import train
from edgeprune.catalog import METHODS
from edgeprune.commands.prune import prune
from edgeprune.options import PruneOptions


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_dry_run_trains_nothing_and_writes_nothing(
    method: str, options: PruneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: object, **__: object) -> None:
        raise AssertionError("a dry run trained")

    monkeypatch.setattr(train, "fit", fit)
    given = replace(options, method=method, dry_run=True, iterations=None, multiple=4)
    found = prune(given)
    assert found.macs <= 0.5 * found.dense_macs
    assert options.output is not None
    assert not options.output.exists()


def test_a_dry_run_of_uniform_is_uniform(options: PruneOptions) -> None:
    found = prune(replace(options, method="uniform", dry_run=True, iterations=None, multiple=1))
    shares = torch.tensor([now / before for now, before in found.widths.values()])
    assert float(shares.max() - shares.min()) < 0.1


def test_a_dry_run_of_tcp_ranks_by_both_domains(options: PruneOptions) -> None:
    plain = replace(options, method="tcp", dry_run=True, iterations=None, multiple=1)
    own, given = prune(plain), prune(replace(plain, set=("variant=given",)))
    assert own.widths != given.widths
