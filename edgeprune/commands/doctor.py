"""`edgeprune doctor`: what is installed, what works when it is tried, and what to install for the rest.

Works with the base packages alone. "Works" means that something ran: a package that is there and cannot be
loaded is not well. Nothing is changed, save the cache when asked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import edgeprune
from edgeprune import catalog
from edgeprune.device_options import DoctorOptions
from edgeprune.errors import EdgePruneError, MissingHere


@dataclass(frozen=True)
class Package:
    """A distribution, the extra that brings it ("" is the base), its version; None: not installed."""

    name: str
    extra: str
    version: str | None


@dataclass(frozen=True)
class Check:
    """Something that was tried: what came out, and the remedy when it did not work."""

    name: str
    works: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class DoctorResult:
    """What doctor found. `cache` holds folder, bytes, and freed_bytes when it was emptied."""

    version: str
    python: str
    machine: str
    packages: tuple[Package, ...]
    runtimes: tuple[Check, ...]
    sensors: tuple[Check, ...]
    cache: Mapping[str, Any]
    complaints: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def doctor(options: DoctorOptions) -> DoctorResult:
    """Look at this installation and this machine; empty the image cache when `clear_cache` is set."""
    packages = installed()
    return DoctorResult(
        version=edgeprune.__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        machine=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=packages,
        runtimes=tuple(_tried(name, *_RUNTIMES[name]) for name in _RUNTIMES),
        sensors=(
            _tried("power", "", lambda: _power("cuda")),
            _tried("power of the processor", "", lambda: _power("cpu")),
            _tried("gpu", "", _gpu),
            _tried("temperature", "", _temperature),
            _tried("clocks", "", _clocks),
        ),
        cache=_cache(options),
        complaints=(*complaints(packages), *overwritten(), *idle_card()),
    )


def installed() -> tuple[Package, ...]:
    """Every distribution that EdgePrune can use, in the order of the extras in pyproject.toml."""
    return tuple(Package(name, extra, _version(name)) for extra, names in _PACKAGES.items() for name in names)


def complaints(packages: tuple[Package, ...], python: tuple[int, int] = sys.version_info[:2]) -> list[str]:
    """What is wrong with this set of packages, each with its remedy."""
    there = {p.name for p in packages if p.version}
    found = []
    if {"onnxruntime", "onnxruntime-gpu"} <= there:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu (or onnxruntime)"
        )
    if not {"onnxruntime", "onnxruntime-gpu"} & there:
        found.append("no ONNX Runtime: bench and predict cannot run ONNX files: pip install 'edgeprune[cpu]'")
    lost = sorted(p.name for p in packages if not p.extra and not p.version)
    if lost:
        found.append(f"missing from the base: {', '.join(lost)}: pip install {' '.join(lost)}")
    if "torch" not in there:
        where = "" if python >= (3, 11) else "; it needs Python 3.11 or later"
        found.append(
            f"no torch: adapt, prune and export do not run here: pip install 'edgeprune[compress]'{where}"
        )
    return found


ONNX_RUNTIMES = frozenset(
    {
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-openvino",
        "onnxruntime-directml",
        "onnxruntime-trt-rtx",
        "onnxruntime-qnn",
        "ort-nightly",
        "ort-nightly-gpu",
    }
)
"""Distributions that all install the same folder `onnxruntime`: the last one installed wins, silently."""


def overwritten(there: Iterable[str] | None = None) -> list[str]:
    """A complaint when several of ONNX_RUNTIMES are installed, beyond the pair that `complaints` knows."""
    if there is None:
        there = (str(d.metadata["Name"] or "") for d in importlib.metadata.distributions())
    owners = sorted({name.lower().replace("_", "-") for name in there} & ONNX_RUNTIMES)
    if len(owners) < 2 or owners == ["onnxruntime", "onnxruntime-gpu"]:
        return []
    return [
        f"{', '.join(owners)} are all installed and overwrite each other's files: "
        f"pip uninstall -y {' '.join(owners)}, then install one of them"
    ]


def idle_card() -> list[str]:
    """A complaint when an NVIDIA card is here that ONNX Runtime cannot use."""
    from edgeprune.bench import nvml

    card, _ = nvml.describe()
    try:
        import onnxruntime
    except Exception:  # missing or broken: the runtime's own line says so
        return []
    if card is None or "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return []
    return [
        f"{card['name']} is here and this ONNX Runtime runs on the CPU alone: "
        "pip uninstall -y onnxruntime && pip install 'edgeprune[gpu]' (x86-64), or build a TensorRT engine"
    ]


# The extras of pyproject.toml; a test holds the two equal.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "": ("numpy", "pillow", "onnx", "typer", "rich", "safetensors", "filelock", "platformdirs", "tomli-w"),
    "compress": (
        "torch",
        "torchvision",
        "timm",
        "torch-pruning",
        "lightning-fabric",
        "onnxscript",
        "onnxslim",
        "scikit-learn",
    ),
    "cpu": ("onnxruntime",),
    "gpu": ("onnxruntime-gpu",),
    "cuda": ("cuda-python",),
    "tensorrt": ("tensorrt",),
    "rtx": ("tensorrt-rtx",),
    "pycuda": ("pycuda",),
    "video": ("av",),
    "report": ("matplotlib", "jinja2"),
    "demo": ("scikit-learn", "mlxtend"),
}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tried(name: str, extra: str, attempt: Callable[[], tuple[bool, str]]) -> Check:
    remedy = f"pip install 'edgeprune[{extra}]'" if extra else ""
    try:
        works, detail = attempt()
    except ModuleNotFoundError as err:
        return Check(name, False, f"{err.name} is not installed", remedy)
    except EdgePruneError as err:  # its message holds the remedy
        return Check(name, False, str(err))
    except Exception as err:  # a broken driver or wheel may raise anything; that is the finding
        return Check(name, False, " ".join(f"{type(err).__name__}: {err}".split())[:200], remedy)
    return Check(name, works, detail, "" if works else remedy)


def _onnxruntime() -> tuple[bool, str]:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    shape = [1, 2]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": np.array([[-1.0, 2.0]], np.float32)})
    right = bool(np.array_equal(answer, [[0.0, 2.0]]))
    names = ", ".join(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
    return right, f"{onnxruntime.__version__}; providers: {names}"


def _torch() -> tuple[bool, str]:
    torch: Any = importlib.import_module("torch")
    right = float(torch.nn.functional.relu(torch.tensor([-1.0, 2.0])).sum()) == 2.0
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return right, f"{torch.__version__}; threads: {torch.get_num_threads()}; CUDA device: {cuda}"


def _torch_compile() -> tuple[bool, str]:
    torch: Any = importlib.import_module("torch")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None and not torch.cuda.is_available():
        return False, "no C++ compiler, which torch.compile needs on a CPU: apt install g++"
    return (
        True,
        f"{torch.__version__}; compiler: {compiler or 'none (CUDA only)'}; not compiled here: it takes long",
    )


def _engines(name: str) -> tuple[bool, str]:
    """TensorRT or TensorRT-RTX: the library makes a builder, and a GPU is there to run what it builds."""
    from edgeprune.runtime import cuda, engines

    trt = engines.module(name)
    made = trt.Builder(trt.Logger(trt.Logger.ERROR)) is not None
    try:
        gpu = cuda.open()
    except EdgePruneError as err:
        raise MissingHere(f"{trt.__version__} can build engines here and not run them: {err}") from err
    try:
        return made, f"{trt.__version__}; {gpu.device}"
    finally:
        gpu.close()


# How each runtime of the catalogue is tried; a test holds the names equal.
_RUNTIMES: Mapping[str, tuple[str, Callable[[], tuple[bool, str]]]] = {
    "ort": (catalog.RUNTIMES["ort"].extra, _onnxruntime),
    "torch": (catalog.RUNTIMES["torch"].extra, _torch),
    "torch-compile": (catalog.RUNTIMES["torch-compile"].extra, _torch_compile),
    "tensorrt": (catalog.RUNTIMES["tensorrt"].extra, lambda: _engines("tensorrt")),
    "tensorrt-rtx": (catalog.RUNTIMES["tensorrt-rtx"].extra, lambda: _engines("tensorrt-rtx")),
}


def _power(device: str) -> tuple[bool, str]:
    from edgeprune.bench import power

    sensor, why = power.find(device=device)
    if sensor is None:
        return False, why
    return True, f"{sensor.source}: {sensor.watts():.1f} W now ({sensor.rule})"


def _clocks() -> tuple[bool, str]:
    from edgeprune.bench import machine

    now = machine.state()
    told = {k: now[k] for k in ("cpu_mhz", "cpu_max_mhz", "throttled") if now[k] is not None}
    if not told:
        return False, "neither clocks nor throttling can be read here (a virtual machine?)"
    return True, ", ".join(f"{k} {v:.0f}" for k, v in told.items())


def _gpu() -> tuple[bool, str]:
    from edgeprune.bench import nvml

    card, why = nvml.describe()
    return card is not None, why if card is None else ", ".join(f"{k} {v}" for k, v in card.items() if v)


def _temperature() -> tuple[bool, str]:
    from edgeprune.bench import machine

    celsius = machine.state()["temp_c"]
    return celsius is not None, "no thermal zone here" if celsius is None else f"{celsius:.0f} °C"


def _cache(options: DoctorOptions) -> dict[str, Any]:
    """Size of the decoded-image cache, after emptying it when asked; only its own files are removed."""
    from edgeprune.data import cache

    folder = options.cache or cache.default_folder()
    freed = {"freed_bytes": cache.clear(options.cache)} if options.clear_cache else {}
    return {"folder": str(folder), "bytes": cache.size(options.cache), **freed}
