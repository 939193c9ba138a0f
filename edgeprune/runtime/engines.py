"""A plan file -> a deserialised engine, after its sidecar was compared with what is here.

TensorRT's own words for a wrong engine name neither version; so what the sidecar says is checked first, and the
error says what built it, what is here, and the command that builds it again.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.artifact import Artifact, TensorSpec
from edgeprune.errors import DataError, MissingHere, ModelError, UsageError
from edgeprune.runtime.cuda import Device
from edgeprune.runtime.trt import DTYPES, Context, Engine, Runtime, RuntimeCache

MODULES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
MAJOR_JUMPS = (
    (8, 10),
    (10, 11),
)  # which later majors load a version-compatible engine; TensorRT 11.4 support matrix
AMPERE = 8.0


@dataclass
class Opened:
    """A deserialised engine. smallest, largest: the shapes of each input, (n, ...); memory: bytes on the device."""

    file: Path
    runtime: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    smallest: Mapping[str, tuple[int, ...]]
    largest: Mapping[str, tuple[int, ...]]
    context: Context
    engine: Engine
    memory: int | None
    trt: Any
    logger: Any
    cache: RuntimeCache | None = None

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return self.runtime == "tensorrt-rtx"

    @property
    def cache_file(self) -> Path:
        """Where RTX's compiled kernels are kept."""
        return self.file.with_name(self.file.name + ".runtime-cache")

    def compiled(self) -> bytes:
        """What RTX compiled for this GPU; empty for TensorRT."""
        return bytes(self.cache.serialize()) if self.cache is not None else b""

    def inspect(self) -> str:
        """Layers as JSON text."""
        form = self.trt.LayerInformationFormat.JSON
        return str(self.engine.create_engine_inspector().get_engine_information(form))

    def said(self) -> str:
        """The library's first error."""
        return str(self.logger.errors[0]) if self.logger.errors else "it says nothing of why"


def module(runtime: str) -> Any:
    """The Python module of a runtime; MissingHere says what to install."""
    if runtime not in MODULES:
        raise UsageError(f"--runtime {runtime} does not run engines; expected {' or '.join(MODULES)}")
    try:
        return importlib.import_module(MODULES[runtime])
    except ImportError as err:
        extra = "rtx,cuda" if runtime == "tensorrt-rtx" else "tensorrt"
        raise MissingHere(
            f"running this engine needs {runtime}, which is not installed here: pip install 'edgeprune[{extra}]'"
            " (on a Jetson it comes with JetPack)"
        ) from err


def built_by(found: Artifact) -> Mapping[str, Any]:
    """What the sidecar says of the build; empty for an engine that something else made."""
    facts = found.meta.get("engine", {})
    return facts if isinstance(facts, Mapping) else {}


def runtime_of(found: Artifact) -> str:
    """What built an engine, by its sidecar; without one, the only library that is here; MissingHere where none is."""
    if facts := built_by(found):
        return str(facts.get("runtime", "tensorrt"))
    here = [name for name, package in MODULES.items() if _is_here(package)]
    if not here:
        raise MissingHere(
            f"{found.path}: running an engine needs the library that built it, and neither is installed here: "
            "pip install 'edgeprune[tensorrt]' for TensorRT (on a Jetson it comes with JetPack), "
            "'edgeprune[rtx,cuda]' for TensorRT-RTX; nothing says which, since its sidecar "
            f"{found.path.name}.json is not beside it"
        )
    return here[0]


def _is_here(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def check_version(found: Artifact, runtime: str, here: str) -> None:
    """MissingHere when the engine is another runtime's or release's; it names both, and the rebuild command."""
    facts = built_by(found)
    if not facts:
        return
    made_by, version = str(facts.get("runtime")), str(facts.get("version"))
    if made_by == runtime and (
        version == here or (facts.get("version_compatible") and _reaches(version, here))
    ):
        return
    raise MissingHere(
        f"{found.path}: was built by {made_by} {version}, and here is {runtime} {here}; build it again: {_again(facts)}"
    )


def check_device(found: Artifact, device: Device) -> None:
    """MissingHere when the engine was built for another GPU; it names both, and the rebuild command."""
    facts = built_by(found)
    if not facts or not found.device:
        return
    if facts.get("runtime") == "tensorrt-rtx":
        asked = [str(c) for c in facts.get("capabilities", ())]
        fits = device.capability in asked if asked else float(device.capability) >= AMPERE
    else:
        built = found.device.rpartition("(")[2].rstrip(")")
        wide = facts.get("hardware_compatible") == "ampere+" and float(device.capability) >= AMPERE
        fits = built == device.capability or wide
    if not fits:
        raise MissingHere(
            f"{found.path}: was built for {found.device}, and this GPU is {device}; build it again: {_again(facts)}"
        )


def _reaches(version: str, here: str) -> bool:
    """Whether release `here` loads a version-compatible engine of release `version`."""
    try:
        old, new = (tuple(int(p) for p in word.split(".")[:3]) for word in (version, here))
    except ValueError:
        return False
    return new >= old and (new[0] == old[0] or (old[0], new[0]) in MAJOR_JUMPS)


def _unknown(found: Artifact, tried: str) -> str:
    other = next(name for name in MODULES if name != tried)
    return (
        f"nothing says what built it, since {found.path.name}.json is not beside it; "
        f"if {other} did, give --runtime {other}"
    )


def _again(facts: Mapping[str, Any]) -> str:
    return str(facts.get("rebuild", "edgeprune export MODEL.onnx --to tensorrt"))


def load(found: Artifact, runtime: str, graphs: bool) -> Opened:
    """Deserialise the plan and make its context; ModelError in the library's words when it cannot."""
    trt = module(runtime)
    logger = _logger(trt)
    maker: Runtime = trt.Runtime(logger)
    if built_by(found).get("version_compatible"):
        maker.engine_host_code_allowed = True
    try:
        plan = found.path.read_bytes()
    except OSError as err:
        raise DataError(f"{found.path}: cannot be read ({err.strerror})") from err
    engine = maker.deserialize_cuda_engine(plan)
    if engine is None:
        why = logger.errors[0] if logger.errors else "it says nothing of why"
        built = built_by(found)
        by = f"built by {built['runtime']} {built['version']}" if built else _unknown(found, runtime)
        raise ModelError(
            f"{found.path}: {runtime} {trt.__version__} cannot open it ({by}): {why}; build it again: {_again(built)}"
        )
    specs = {kind: _specs(trt, engine, kind) for kind in (True, False)}
    sizes = {s.name: _profile(engine, s) for s in specs[True]}
    context, cache = _context(trt, engine, found.path, runtime, graphs)
    memory = getattr(engine, "device_memory_size_v2", None) or getattr(engine, "device_memory_size", None)
    if context is None:
        why = logger.errors[0] if logger.errors else "it says nothing of why"
        raise ModelError(f"{found.path}: {runtime} {trt.__version__} makes no context of it: {why}")
    return Opened(
        found.path,
        runtime,
        str(trt.__version__),
        specs[True],
        specs[False],
        {name: low for name, (low, _) in sizes.items()},
        {name: high for name, (_, high) in sizes.items()},
        context,
        engine,
        int(memory) if memory is not None else None,
        trt,
        logger,
        cache,
    )


def _specs(trt: Any, engine: Engine, inputs: bool) -> tuple[TensorSpec, ...]:
    made = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        if (engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT) is inputs:
            kind = str(engine.get_tensor_dtype(name)).rsplit(".", maxsplit=1)[-1]
            shape = tuple("batch" if d == -1 else int(d) for d in engine.get_tensor_shape(name))
            made.append(TensorSpec(name, shape, DTYPES.get(kind, kind.lower())))
    return tuple(made)


def _profile(engine: Engine, spec: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Smallest and largest shape of an input; the same for one of fixed sizes."""
    fixed = tuple(d for d in spec.shape if isinstance(d, int))
    if len(fixed) == len(spec.shape):
        return fixed, fixed
    low, _, high = engine.get_tensor_profile_shape(spec.name, 0)
    return tuple(int(d) for d in low), tuple(int(d) for d in high)


def _context(
    trt: Any, engine: Engine, file: Path, runtime: str, graphs: bool
) -> tuple[Context | None, RuntimeCache | None]:
    """For RTX: kernels compiled for the shapes at hand before the first run, and kept beside the engine."""
    if runtime != "tensorrt-rtx":
        return engine.create_execution_context(), None
    config = engine.create_runtime_config()
    cache = config.create_runtime_cache()
    held = file.with_name(file.name + ".runtime-cache")
    if held.is_file():
        cache.deserialize(held.read_bytes())
    config.set_runtime_cache(cache)
    strategy = trt.CudaGraphStrategy
    config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if graphs else strategy.DISABLED
    # The default runs a fallback kernel first and swaps a better one in later: no number to report.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config), cache


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split())[:300])

    return Logger()
