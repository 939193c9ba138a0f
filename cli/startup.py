"""How the threads of CPU libraries behave in this process, set before any of them is imported.

Threads that spin while they wait starve each other on a busy machine: in training, two of them fell from 64 to 5 images
a second, and waiting passively brought most of it back. `bench` gets only its number of threads: it measures what a
plain program would see. What the user has set in the environment stays, save for --threads, which is more explicit.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any


def prepare(command: str, options: Any) -> None:
    """Set threads and wait policy for `command`."""
    # bench takes several, "1,2"; what is no number is refused later, with a sentence
    asked = max(
        (int(t) for t in str(getattr(options, "threads", 0) or 0).split(",") if t.isdecimal()), default=0
    )
    if asked > 0:
        os.environ["OMP_NUM_THREADS"] = str(asked)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    if command != "bench":
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("GOMP_SPINCOUNT", "0")


def cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, round(int(quota) / int(period))))
    return count
