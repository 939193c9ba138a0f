"""How far memory rose while something ran."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgeprune.bench import memory

PEAKS = """
import json
from edgeprune.bench import memory
print(json.dumps([memory.peak_of(lambda: len(bytearray(size << 20))) for size in (64, 1)]))
"""


def test_peak_memory_of_one_piece_of_work(tmp_path: Path) -> None:
    # In a process of its own: this one may hold freed memory that the work would take without asking for more.
    found = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    (made, peak, why), (_, small, _) = json.loads(found.stdout)
    assert made == 64 << 20
    if peak is not None:
        assert 48 << 20 < peak < 96 << 20
        assert small < 16 << 20, "the earlier peak is not told again"
    assert memory.peak_of(lambda: 7, tmp_path)[:2] == (7, None)
    assert "cannot be reset here" in memory.peak_of(lambda: 7, tmp_path)[2]
    assert bool(why) == (peak is None)
