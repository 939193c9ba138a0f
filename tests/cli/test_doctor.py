"""doctor tells what is installed and what ran; complaints have a remedy; the cache stays unless asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgeprune
from edgeprune import catalog
from edgeprune.commands import doctor as subject
from edgeprune.commands.doctor import Package, complaints, doctor
from edgeprune.options import DoctorOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(edgeprune.__file__).parent.parent


def package(name: str, extra: str = "cpu") -> Package:
    return Package(name, extra, "1.0")


def test_it_tells_what_runs(tmp_path: Path) -> None:
    result = doctor(DoctorOptions(cache=tmp_path))
    assert {r.name for r in result.runtimes} == set(catalog.RUNTIMES)
    assert all(s.detail for s in result.sensors)
    json.dumps(result.to_json())


def test_two_onnx_runtimes_are_a_complaint() -> None:
    both = (package("onnxruntime"), package("onnxruntime-gpu"), package("torch"))
    (said,) = complaints(both)
    assert said.startswith("onnxruntime and onnxruntime-gpu are both installed")
    assert "pip uninstall" in said
    assert complaints(both[1:]) == []


def test_what_is_missing_is_said_with_its_remedy() -> None:
    said = " ".join(complaints((Package("numpy", "", None),), (3, 10)))
    assert "pip install 'edgeprune[cpu]'" in said
    assert "missing from the base: numpy" in said
    assert "it needs Python 3.11 or later" in said


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not a checkout")
def test_the_packages_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, names in subject._PACKAGES.items():
        bare = {re.split(r"[><=; ]", line)[0] for line in wanted[extra]}
        known = set(names) | {"tomli", *(n for e in ("cuda",) for n in subject._PACKAGES[e])}
        assert bare <= known, extra
    assert set(wanted) - set(subject._PACKAGES) == {"test"}


def test_it_works_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
from edgeprune.cli.app import main
sys.exit(main(["doctor", "--json"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {r["name"]: r for r in json.loads(done.stdout)["runtimes"]}
    assert not found["torch"]["works"]
    assert found["torch"]["remedy"] == "pip install 'edgeprune[compress]'"
