"""Every package and module of the checkout is in the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgeprune

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(edgeprune.__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not a checkout")


def sources() -> dict[str, Path]:
    """Path inside the wheel -> file of the checkout; cli/ and export/ live at the top."""
    found = {}
    for top, inside in (("edgeprune", "edgeprune"), ("cli", "edgeprune/cli"), ("export", "edgeprune/export")):
        for path in (ROOT / top).rglob("*"):
            relative = path.relative_to(ROOT / top)
            linked = top == "edgeprune" and relative.parts[0] in ("cli", "export")
            if path.is_file() and path.suffix in (".py", ".html", ".json", ".typed") and not linked:
                found[f"{inside}/{relative.as_posix()}"] = path
    return found


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {str(Path(name).parent).replace("/", ".") for name in sources() if name.endswith(".py")}
    assert folders <= listed
    for package in listed:
        assert f"{package.replace('.', '/')}/__init__.py" in sources(), f"{package} has no __init__.py"


@pytest.mark.slow
def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is older than the build asks for")
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("edgeprune", "cli", "export"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    assert set(sources()) <= shipped
