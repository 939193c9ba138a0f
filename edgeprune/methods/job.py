"""What every method works on, and the parts it is a schedule of: score, cut, re-estimate, recover.

A part that finished is kept in the run's resume folder, so a run that was killed goes on with the part it was in.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune import catalog, checkpoint, train
from edgeprune.data.folder import Pixels
from edgeprune.model import Network
from edgeprune.options import PruneOptions
from edgeprune.plan import PruningPlan
from edgeprune.prune import budget, graph, macs, surgery
from edgeprune.prune.budget import Budget
from edgeprune.prune.coupling import Couplings
from edgeprune.run import Run
from edgeprune.waist import Objective

AGREEMENT_IMAGES = 2048


@dataclass
class Job:
    """One pruning job.

    network: the student, changed in place. dense: the adapted network as it was, frozen; teacher and reference.
    target: unlabelled images. source: labelled images or None. trace: one entry a cut, JSON values.
    """

    network: Network
    dense: nn.Module
    target: Pixels
    source: Pixels | None
    budget: Budget
    options: PruneOptions
    run: Run | None
    trace: list[dict[str, Any]] = field(default_factory=list)
    plans: list[PruningPlan] = field(default_factory=list)

    @staticmethod
    def of(network: Network, target: Pixels, source: Pixels | None, how: Budget, options: PruneOptions, run: Run | None) -> Job:
        """A job whose dense reference is a frozen copy of the network as it is now."""
        dense = copy.deepcopy(network.module).eval().requires_grad_(False)
        return Job(network, dense, target, source, how, options, run)
