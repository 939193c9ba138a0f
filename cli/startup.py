"""How CPU libraries behave in this process, set before any of them is imported.

Threads that spin while they wait starve each other on a busy machine: in training, two of them fell from 64
to 5 images a second, and waiting passively, with activations kept from being mapped and unmapped at every
step, brought most of it back. glibc is asked through mallopt(3), which needs no second start of the
program.
Training commands get both. `bench` gets only its threads: it measures what a plain program would see.
What the user has set in the environment stays, save for --threads, which is more explicit.
EDGEPRUNE_NO_MALLOPT=1 leaves the allocator alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Any

TRAINING = frozenset({"adapt", "prune", "demo"})

# Keys of mallopt(3): no mapped blocks, so that big ones stay on the heap; a heap that does not shrink.
_MALLOPT = {
    -4: ("MALLOC_MMAP_MAX_", 0),
    -1: ("MALLOC_TRIM_THRESHOLD_", 1 << 30),
    -2: ("MALLOC_TOP_PAD_", 64 << 20),
}


def prepare(command: str, options: Any) -> None:
    """Set threads, wait policy and allocator for `command`."""
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
    if command in TRAINING:
        keep_memory()


def cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, round(int(quota) / int(period))))
    return count


def keep_memory() -> bool:
    """Ask glibc to keep freed memory for the next step; False where there is no glibc or the user said no."""
    if sys.platform != "linux" or os.environ.get("EDGEPRUNE_NO_MALLOPT"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    chosen = [(key, value) for key, (name, value) in _MALLOPT.items() if name not in os.environ]
    taken = [mallopt(key, value) == 1 for key, value in chosen]
    return all(taken)
