"""`--help` needs no torch, numpy, onnx or timm; each command has an example; the order is that of work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgeprune
from edgeprune.cli.options import COMMANDS

ROOT = Path(edgeprune.__file__).parent.parent
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "onnx",
    "onnxruntime",
    "PIL",
    "matplotlib",
    "jinja2",
    "safetensors",
}

# Runs one command line with the heavy packages blocked, then says which of edgeprune's modules were loaded.
PROBE = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ImportError("help imports " + name)
sys.meta_path.insert(0, Blocker())
from edgeprune.cli.app import main
code = main({words!r})
print("LOADED", *sorted(m for m in sys.modules if m.startswith("edgeprune.")), file=sys.stderr)
heavy = sorted({heavy!r} & {{m.partition(".")[0] for m in sys.modules}})
assert not heavy, heavy
sys.exit(code)
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    code = PROBE.format(heavy=HEAVY, words=list(words))
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [(), *((c,) for c in COMMANDS)], ids=" ".join)
def test_help_is_light(words: tuple[str, ...]) -> None:
    done = run(*words, "--help")
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.rpartition("LOADED")[2].split()
    light = ("catalog", "errors", "options", "device_options", "cli", "report", "report.numbers")
    allowed = {f"edgeprune.{name}" for name in light}
    assert {m for m in loaded if not m.startswith("edgeprune.cli.")} <= allowed
    if words:
        assert f"edgeprune {words[0]} " in done.stdout.partition("Examples:")[2] or words[0] in (
            "doctor",
            "demo",
        )
        assert "Examples:" in done.stdout


def test_commands_stand_in_the_order_of_work() -> None:
    lines = run("--help").stdout.splitlines()
    words = [line.split()[1] for line in lines if line.startswith("│") and len(line.split()) > 2]
    assert [w for w in words if w in COMMANDS] == [
        "adapt",
        "prune",
        "export",
        "bench",
        "predict",
        "inspect",
        "report",
        "doctor",
        "demo",
    ]


def test_the_blocker_sees_a_heavy_import() -> None:
    code = PROBE.format(heavy=HEAVY, words=["--version"]).replace("code = main", "import numpy; code = main")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "help imports numpy" in done.stderr
