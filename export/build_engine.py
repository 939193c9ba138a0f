"""One engine build in a process of its own: a JSON request on stdin, a JSON answer as the last line of stdout.

A process of its own, because a failed TensorRT-RTX build spoils the next one in the same process, the first
logger wins for good, and a crash of the library is then one error line and not the end of the command.

One path for tensorrt 8.6, 10 and 11 and for tensorrt_rtx. What differs is decided by four switches: the module,
whether typing is strong (RTX, and tensorrt from 10), RTX's compute capabilities, and hasattr for the rest.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgePruneError, MissingHere, ModelError, RunError, UsageError
from edgeprune.export import reading, targets
from edgeprune.runtime.trt import DTYPES, Builder, BuilderConfig, Network, Parser, Tensor

STRONG_FROM = 10


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Build `request["onnx"]` into the plan file `request["output"]`; return versions, layers and sizes."""
    trt = _module(request["module"])
    rtx = request["module"] == "tensorrt_rtx"
    strong = rtx or _major(trt) >= STRONG_FROM
    logger = _logger(trt)
    builder: Builder | None = trt.Builder(logger)
    if builder is None:
        raise MissingHere(f"{request['module']} {trt.__version__} cannot build here: {logger.last()}")
    network = builder.create_network(_flags(trt, strong))
    parser: Parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        raise _not_parsed(Path(request["onnx"]), parser, f"{request['module']} {trt.__version__}")
    config, cache = _configured(trt, builder, network, request, strong)
    monitor = _monitor(trt)  # kept, because the library does not
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError(f"{Path(request['onnx']).name}: {request['module']} built nothing: {logger.last()}")
    targets.keep(config, cache)
    data = bytes(plan)
    try:
        Path(request["output"]).write_bytes(data)
    except OSError as err:
        raise RunError(f"{request['output']}: cannot be written ({err.strerror})") from err
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {
        "version": str(trt.__version__),
        "strongly_typed": strong,
        "bytes": len(data),
        "inputs": [_tensor(t) for t in tensors],
        "outputs": [_tensor(t) for t in outputs],
        "layers": census(logger.layers()),
        "gpu": "" if rtx else _gpu(),
        "warnings": logger.warnings[:20],
    }


def _configured(
    trt: Any, builder: Builder, network: Any, request: dict[str, Any], strong: bool
) -> tuple[BuilderConfig, Path | None]:
    """What the builder is told, and the timing cache that it fills (None for RTX, which has none)."""
    config: BuilderConfig = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(request["workspace"]) << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["optimization_level"] is not None:
        config.builder_optimization_level = int(request["optimization_level"])
    if not strong:
        _weak_flags(trt, config, request["precision"])
    _profile(builder, network, config, request["profile"])
    if request["module"] == "tensorrt_rtx":
        _capabilities(trt, config, request["capabilities"])
        return config, None
    targets.compatibility(trt, config, request)
    targets.dla(trt, builder, config, request["dla"])
    return config, targets.timing_cache(trt, config, request["timing_cache"], _gpu())


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as err:
        package, extra = name.replace("_", "-"), "rtx" if name == "tensorrt_rtx" else "tensorrt"
        raise MissingHere(
            f"--to {package} needs {package}, which is not installed here: pip install {package} "
            f"(or 'edgeprune[{extra}]'; on a Jetson it comes with JetPack)"
        ) from err


def _major(trt: Any) -> int:
    return int(str(trt.__version__).split(".", maxsplit=1)[0])


def _flags(trt: Any, strong: bool) -> int:
    """The one flag of the release: strong typing, or else the explicit batch that 8.x must be told."""
    word = "STRONGLY_TYPED" if strong else "EXPLICIT_BATCH"
    flag = getattr(trt.NetworkDefinitionCreationFlag, word, None)
    return 0 if flag is None else 1 << int(flag)


def _weak_flags(trt: Any, config: BuilderConfig, precision: str) -> None:
    """Before 10 the graph's types are not obeyed, so the precision is a flag; Q/DQ needs both."""
    if precision in ("fp16", "int8"):
        config.set_flag(trt.BuilderFlag.FP16)
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)


def _profile(builder: Builder, network: Network, config: BuilderConfig, sizes: list[int]) -> None:
    """One profile when a batch is free; a free size other than the batch is refused by name."""
    made = None
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            raise ModelError(f"input {tensor.name} has a free size {list(shape)}; only the batch may be free")
        if shape and shape[0] == -1:
            made = made or builder.create_optimization_profile()
            made.set_shape(tensor.name, *((size, *shape[1:]) for size in sizes))
    if made is not None:
        config.add_optimization_profile(made)


def _capabilities(trt: Any, config: BuilderConfig, wanted: list[str]) -> None:
    """Targets such as "8.6"; none leaves RTX's own choice, which is Ampere and later."""
    if not wanted:
        return
    config.num_compute_capabilities = len(wanted)
    for i, word in enumerate(wanted):
        target = getattr(trt.ComputeCapability, "SM" + word.replace(".", ""), None)
        if target is None:
            known = [n[2:-1] + "." + n[-1] for n in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", n)]
            known.sort(key=float)
            raise UsageError(
                f"--compute-capability {word}: tensorrt_rtx {trt.__version__} knows {', '.join(known)}"
            )
        if not config.set_compute_capability(target, i):
            raise ModelError(f"--compute-capability {word}: refused by tensorrt_rtx {trt.__version__}")


def _not_parsed(file: Path, parser: Parser, library: str) -> EdgePruneError:
    """What the parser has against the graph, with the layer of its node; an opset that is too old or new is said."""
    model = reading.whole(file, foreign=True)
    error = parser.get_error(0) if parser.num_errors else None
    said = " ".join(str(error.desc()).split())[:300] if error is not None else "it says nothing of why"
    name = str(error.node_name()) if error is not None and hasattr(error, "node_name") else ""
    node = next((n for n in model.graph.node if n.name and n.name == name), None)
    where = f"operator {node.op_type} of {reading.layer(node)}: " if node is not None else ""
    opset = reading.opset(model)
    old = f" (it is of opset {opset}: export it with --opset 20)" if opset < reading.OLDEST else ""
    return MissingHere(f"{file.name}: not taken by {library}: {where}{said}{old}")


def _tensor(tensor: Tensor) -> dict[str, Any]:
    kind = str(tensor.dtype).rsplit(".", maxsplit=1)[-1]
    shape = ["batch" if d == -1 else int(d) for d in tensor.shape]
    return {"name": tensor.name, "shape": shape, "dtype": DTYPES.get(kind, kind.lower())}


def _gpu() -> str:
    """Name and capability of the GPU the engine is bound to; empty where no driver answers."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return ""
    status, properties = runtime.cudaGetDeviceProperties(0)
    if int(status):
        return ""
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return f"{name} ({properties.major}.{properties.minor})"


def _monitor(trt: Any) -> Any:
    """Tells the other process how far the build is; None before TensorRT 10, which has no such thing.

    The outermost phase is the whole; the phase below it divides its current step.
    """
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.open: dict[str, list[int]] = {}
            self.furthest = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.open[phase_name] = [0, max(1, num_steps)]
            self.tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.open:
                self.open[phase_name][0] = step + 1
            self.tell(phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.open.pop(phase_name, None)

        def tell(self, phase: str) -> None:
            share, width = 0.0, 1.0
            for done, total in self.open.values():
                share, width = share + width * min(done, total) / total, width / total
            # Phases overlap and a sub-phase may outlast its step; a bar that goes back helps nobody.
            self.furthest = max(self.furthest, min(100, int(100 * share)))
            print(f"progress {self.furthest} {phase}", flush=True)  # noqa: T201

    return Monitor()


def _logger(trt: Any) -> Any:
    """Keeps what the builder says: the inspector needs a GPU, the log does not."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.table: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split())[:300])
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(" ".join(message.split())[:300])
            elif "LayerType:" in message:
                self.table.append(message)

        def last(self) -> str:
            return self.errors[0] if self.errors else "it says nothing of why"

        def layers(self) -> str:
            return "\n".join(self.table)

    return Logger()


def census(log: str) -> dict[str, int]:
    """Layers of the built engine by the type of their first input, from the builder's own table.

    Convolutions are counted apart as well ("convolutions_Half"); {} when the log holds no table.
    """
    found: dict[str, int] = {}
    for line in log.splitlines():
        kind = re.search(r"LayerType: (\w+)", line)
        taken = re.search(r"Inputs: \[ *\{.*?Datatype: (\w+)", line)
        if not kind or not taken:
            continue
        found[taken[1]] = found.get(taken[1], 0) + 1
        if kind[1].lower() in ("correlation", "convolution", "caskconvolution"):
            key = f"convolutions_{taken[1]}"
            found[key] = found.get(key, 0) + 1
    return found


def main() -> int:
    """Answer one request; the exit code is always 0 when an answer was written."""
    request = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"ok": build(request)}
    except EdgePruneError as err:
        answer = {"error": str(err), "kind": type(err).__name__}
    print("\n" + json.dumps(answer))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
