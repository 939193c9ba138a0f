"""An import only points down. Floors 0 and 1 and the device-side commands need no torch."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgeprune

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(edgeprune.__file__).parent
ROOT = PACKAGE.parent
DEVICE = [f"commands.{c}" for c in ("bench", "predict", "inspect", "doctor")]

BLOCKER = """
import importlib, importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} was imported", name=name)
sys.meta_path.insert(0, Blocker())
for name in {names!r}:
    importlib.import_module(name)
"""


def modules(folder: str) -> list[str]:
    return [
        f"{folder}.{p.stem}"
        for p in sorted((PACKAGE / folder).glob("*.py"))
        if p.stem not in ("__init__", "__main__")
    ]


def layers() -> list[list[str]]:
    """Floors of pyproject.toml, from the top, each with its modules; empty away from a checkout."""
    if not (ROOT / "pyproject.toml").is_file():
        return []
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return [[m.strip() for m in re.split("[:|]", line)] for line in contracts[0]["layers"]]


def low_floors() -> list[str]:
    """Modules of floors 0 and 1: from bench down."""
    names = layers()
    start = next((i for i, floor in enumerate(names) if "edgeprune.bench" in floor), len(names))
    return [m.removeprefix("edgeprune.") for floor in names[start:] for m in floor]


def device_side() -> list[str]:
    single = [m for m in low_floors() if not (PACKAGE / m).is_dir()]
    names = [*single, *modules("runtime"), *modules("bench"), *modules("cli"), *DEVICE]
    return [f"edgeprune.{name}" for name in names]


def without(blocked: set[str], names: list[str]) -> subprocess.CompletedProcess[str]:
    code = BLOCKER.format(blocked=blocked, names=names)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_import_only_points_down() -> None:
    pytest.importorskip("importlinter")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_stands_on_a_floor() -> None:
    if not layers():
        pytest.skip("not a checkout")
    there = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    named = {m.removeprefix("edgeprune.") for floor in layers() for m in floor}
    assert there - {"__init__"} == named


@pytest.mark.parametrize("name", device_side())
def test_the_device_side_is_all_there(name: str) -> None:
    assert importlib.util.find_spec(name)


def test_the_device_side_imports_without_torch() -> None:
    done = without({"torch", "torchvision", "timm", "torch_pruning", "lightning_fabric"}, device_side())
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks() -> None:
    done = without({"torch"}, ["torch"])
    assert done.returncode != 0
    assert "torch was imported" in done.stderr
