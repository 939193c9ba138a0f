"""doctor tells what is installed and what ran; complaints have a remedy; the cache stays unless asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from rich.console import Console

import edgeprune
from edgeprune import catalog
from edgeprune.bench import nvml
from edgeprune.cli import doctor as shown
from edgeprune.commands import doctor as subject
from edgeprune.commands.doctor import Package, complaints, doctor, overwritten
from edgeprune.device_options import DoctorOptions

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


def test_any_two_builds_of_onnx_runtime_are_a_complaint() -> None:
    (said,) = overwritten(["onnxruntime", "ONNXRuntime_OpenVINO", "numpy"])
    assert said.startswith(
        "onnxruntime, onnxruntime-openvino are all installed and overwrite each other's files"
    )
    assert "pip uninstall -y onnxruntime onnxruntime-openvino" in said
    assert overwritten(["onnxruntime", "onnxruntime-gpu"]) == [], "told by `complaints` already"
    assert overwritten(["onnxruntime-gpu"]) == []


def test_a_card_that_onnx_runtime_cannot_use_is_a_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "describe", lambda: ({"name": "RTX 4090"}, ""))
    (said,) = subject.idle_card()
    assert said.startswith("RTX 4090 is here and this ONNX Runtime runs on the CPU alone: pip uninstall")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert subject.idle_card() == []
    monkeypatch.undo()
    monkeypatch.setattr(nvml, "describe", lambda: (None, "NVML: no driver"))
    assert subject.idle_card() == []


def test_the_json_is_complete(tmp_path: Path) -> None:
    facts = json.loads(json.dumps(doctor(DoctorOptions(cache=tmp_path)).to_json()))
    assert set(facts) >= {
        "version",
        "python",
        "machine",
        "packages",
        "runtimes",
        "sensors",
        "cache",
        "complaints",
    }
    names = {s["name"] for s in facts["sensors"]}
    assert names == {"power", "power of the processor", "gpu", "temperature", "clocks"}
    for check in (*facts["runtimes"], *facts["sensors"]):
        assert set(check) == {"name", "works", "detail", "remedy"}
        assert check["detail"]


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


def test_a_remedy_says_what_it_adds_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lost = Package("pillow", "", None)
    (said,) = (c for c in complaints((lost, package("onnxruntime"), package("torch"))) if "base" in c)
    assert said == "missing from the base: pillow: pip install pillow"
    console = Console(width=200, record=True)
    facts = doctor(DoctorOptions(cache=tmp_path)).to_json()
    facts["packages"] = [{"name": "av", "extra": "video", "version": None}]
    shown.show(facts, console)
    told = " ".join(console.export_text().split())
    assert "keeps the edgeprune that is installed here and adds what the extra names" in told
    assert "in its checkout: pip install 'edgeprune[cpu] @ .'" in told
    capfd.readouterr()
