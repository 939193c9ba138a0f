"""What `edgeprune prune --latency` needs to know of the device: its layer table, and a clock if it is this machine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.bench import layers as device
from edgeprune.bench.table import LayerTable
from edgeprune.commands import layers
from edgeprune.commands.stopwatch import Stopwatch
from edgeprune.errors import DataError
from edgeprune.methods.job import Job
from edgeprune.model import Network
from edgeprune.prune import deadline, macs
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.latency import Timing

FILE = "layer-table.json"  # in the run folder, for resuming and for other budgets
DENSE = "resume/dense-ms.json"  # the time that shares of a budget, and numbers of cuts, were reckoned from


def of(network: Network, table: Path | None, stack: contextlib.ExitStack) -> Timing:
    """The table of `--table` if there is one, and a clock unless it comes from another device or runtime.

    MissingHere when neither a table is given nor ONNX Runtime is here; DataError for a file that is no table.
    """
    read = LayerTable.read(table) if table is not None else None
    if read is not None and not device.here(read):
        return Timing(read)
    threads = read.threads if read is not None else 1
    clock = stack.enter_context(Stopwatch(network.module, network.example(), threads))
    return Timing(read, clock.dense_ms, clock)


def with_table(job: Job) -> Timing:
    """The job's timing with a table: the given one, the one an interrupted run made, or one measured now."""
    if job.timing.table is not None:
        return job.timing
    file = job.run.path / FILE if job.run else None
    if file is not None and file.is_file():
        with contextlib.suppress(DataError):
            return replace(job.timing, table=LayerTable.read(file))
    dense = replace(job.network, module=job.dense)
    table = layers.measured_here(dense)
    if file is not None and job.run is not None:
        layers.save(table, file)
        job.run.log(f"layer table: {len(table.layers)} shapes measured on {table.device}")
    return replace(job.timing, table=table)


def as_begun(job: Job) -> Timing:
    """The job's timing with the dense time that the run began with: no two processes measure the same.

    Ceilings and numbers of cuts follow from it, so what an interrupted run measured is taken up, and what is measured
    now is kept for the next process. The clock goes on, on that scale.
    """
    if job.run is None or job.timing.dense_ms is None:
        return job.timing
    file = job.run.path / DENSE
    if not file.is_file():
        job.run.resume_dir.mkdir(exist_ok=True)
        job.run.write(DENSE, json.dumps(job.timing.dense_ms).encode())
        return job.timing
    begun = float(json.loads(file.read_text()))
    vars(job).pop("dense_ms", None)  # reckoned once, from what this process measured
    if isinstance(job.timing.clock, Stopwatch):
        job.timing.clock.dense_ms = begun
    job.run.log(f"dense network: {begun:.4g} ms, as when the run began (now {job.timing.dense_ms:.4g})")
    return replace(job.timing, dense_ms=begun)


def outside(facts: Mapping[str, Any], planned: float | None) -> list[str]:
    """A warning when the finished network does not take what was asked for, as an outcome says.

    planned: the share of the request that the plan was measured to take. Below the band is no surprise where it was
    planned (another budget is the tighter one), or where nothing measured a plan.
    """
    share, (low, high) = facts.get("of_requested"), deadline.BAND
    if share is None or low <= share <= high or (share < low and (planned is None or planned < low)):
        return []
    return [
        f"measured once more, the network takes {share:.2f} of the latency that was asked for, outside {low} to "
        f"{high}: the machine was busy now or while it was planned; `edgeprune bench` says more"
    ]


def outcome(job: Job) -> dict[str, Any]:
    """What was requested and reached, in milliseconds; measured beside the dense network where the device is here."""
    requested = job.budget.deadline(job.dense_ms)
    facts: dict[str, Any] = {"requested_ms": requested, "dense_ms": job.dense_ms}
    clock = job.timing.clock
    if isinstance(clock, Stopwatch):
        found = clock.verdict(job.network.module)
        facts |= {"measured_ms": job.dense_ms / found.speedup, "speedup": found.speedup}
        facts |= {"ci_low": found.ci_low, "ci_high": found.ci_high}
        facts["of_requested"] = facts["measured_ms"] / requested
        facts["interrupted"] = round(clock.interrupted, 3)
        facts["device"] = f"{device.device()}, {device.runtime()}"
        return facts
    costs = macs.trace(job.network.module, job.network.example(), Couplings(()))
    predictor = job.timing.predictor(costs, job.dense_costs)
    facts["predicted_ms"] = float(predictor.at(np.zeros(0)))
    table = job.timing.table
    facts["device"] = f"{table.device}, {table.runtime} (another machine: not measured)" if table else None
    return facts
