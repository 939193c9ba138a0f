"""Most host memory that a piece of work added to this process, by the kernel's own high-water mark.

Linux: writing 5 to /proc/self/clear_refs resets VmHWM (proc(5)), so the peak of one runner is told apart from the
peak of those opened before it. Where that is not possible the answer is None and a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")


def peak_of(work: Callable[[], Made], root: Path = Path("/")) -> tuple[Made, int | None, str]:
    """Run `work`: its answer, the bytes by which memory rose above what was held before, and why that is None."""
    here = root / "proc/self"
    try:
        (here / "clear_refs").write_text("5")
        before = _bytes(here, "VmRSS")
    except OSError as err:
        return work(), None, f"the peak cannot be reset here ({err.strerror or err}); see process_peak_bytes"
    made = work()
    peak = _bytes(here, "VmHWM")
    if before is None or peak is None:
        return made, None, "no VmHWM in /proc/self/status; see process_peak_bytes"
    return made, max(peak - before, 0), ""


def _bytes(folder: Path, key: str) -> int | None:
    found = re.search(rf"^{key}:\s*(\d+) kB", (folder / "status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
