"""Stand-ins for what this machine has not: a GPU behind the CUDA interface, and a TensorRT module of some release.

The GPU really moves bytes between its own memory and the host's, on streams that run late: a copy or a kernel happens
when the stream is waited for, so a runner that forgets to wait, or to copy, is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgeprune.errors import ModelError
from edgeprune.runtime.cuda import Device
from edgeprune.runtime.runner import Array

TABLE = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text())


class Gpu:
    """The Cuda protocol over bytearrays."""

    name = "stand-in"

    def __init__(self, capability: str = "8.7", captures: bool = True) -> None:
        self.device = Device("Orin", capability, True)
        self.captures = captures
        self.memory: dict[int, Array] = {}
        self.pins: list[Array] = []
        self.work: list[Callable[[], None]] = []
        self.capturing: list[Callable[[], None]] | None = None
        self.fails_to_capture = False
        self.counts = {"captured": 0, "launched": 0, "executed": 0}
        self.open_things: set[Any] = set()
        self.clock = 0.0
        self.closed = 0

    def malloc(self, size: int) -> int:
        address = 4096 * (1 + len(self.memory))
        self.memory[address] = np.zeros(size, np.uint8)
        self.open_things.add(address)
        return address

    def free(self, address: int) -> None:
        self.open_things.remove(address)
        self.memory[address] = np.zeros(0, np.uint8)

    def pinned(self, size: int) -> Array:
        self.pins.append(np.zeros(size, np.uint8))
        return self.pins[-1]

    def unpin(self, host: Array) -> None:
        self.pins = [p for p in self.pins if p is not host]

    def stream(self) -> int:
        self.open_things.add("stream")
        return 7

    def close_stream(self, stream: int) -> None:
        self.open_things.remove("stream")

    def put(self, work: Callable[[], None]) -> None:
        (self.work if self.capturing is None else self.capturing).append(work)

    def synchronise(self, stream: int) -> None:
        assert stream == 7
        for step in self.work:
            step()
        self.work = []

    def to_device(self, address: int, host: Array, stream: int) -> None:
        def copy() -> None:
            self.clock += 1.0
            self.memory[address][: host.nbytes] = host.view(np.uint8)

        self.put(copy)

    def to_host(self, host: Array, address: int, stream: int) -> None:
        def copy() -> None:
            self.clock += 2.0
            host.view(np.uint8)[:] = self.memory[address][: host.nbytes]

        self.put(copy)

    def event(self) -> Any:
        made: dict[str, float] = {}
        self.open_things.add(id(made))
        return made

    def close_event(self, event: Any) -> None:
        self.open_things.remove(id(event))

    def record(self, event: Any, stream: int) -> None:
        self.put(lambda: event.update(at=self.clock))

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        return float(end["at"] - begin["at"])

    def capture(self, work: Callable[[], None], stream: int) -> Any:
        if self.fails_to_capture:
            raise ModelError("cudaStreamEndCapture: operation not permitted")
        self.capturing = []
        work()
        graph, self.capturing = tuple(self.capturing), None
        self.counts["captured"] += 1
        self.open_things.add(graph)
        return graph

    def launch(self, graph: Any, stream: int) -> None:
        self.counts["launched"] += 1
        self.work.extend(graph)

    def close_graph(self, graph: Any) -> None:
        self.open_things.remove(graph)

    def close(self) -> None:
        self.closed += 1


class Mode(Enum):
    INPUT = 1
    OUTPUT = 2


class Kind(Enum):
    FLOAT = 0
    UINT8 = 5


class FakeEngine:
    """images (n, 3, 2) -> twice the sum of each image's channels, (n, 2), n from 1 to 4 or fixed."""

    num_io_tensors = 2
    device_memory_size = 64
    device_memory_size_v2 = 64

    def __init__(self, gpu: Gpu, batch: int, dtype: Kind) -> None:
        self.gpu, self.batch, self.dtype = gpu, batch, dtype
        self.config: Any = None
        self.context: FakeContext | None = None

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "images" else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        return (self.batch, 3, 2) if name == "images" else (self.batch, 2)

    def get_tensor_dtype(self, name: str) -> Kind:
        return self.dtype if name == "images" else Kind.FLOAT

    def get_tensor_profile_shape(self, name: str, profile: int) -> Sequence[Sequence[int]]:
        return ((1, 3, 2), (2, 3, 2), (4, 3, 2))

    def create_execution_context(self, config: Any = None) -> FakeContext:
        self.config = config
        self.context = FakeContext(self)
        return self.context

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: f'{{"form": "{form}"}}')

    def create_runtime_config(self) -> Any:
        cache = SimpleNamespace(held=b"")
        cache.deserialize = lambda data: setattr(cache, "held", data)
        cache.serialize = lambda: cache.held + b"+"
        return SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda c: True)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.shape, self.addresses = engine, (0, 3, 2), dict[str, int]()
        self.profile: tuple[int, int] | None = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = (index, stream)
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self.shape = tuple(shape)  # type: ignore[assignment]
        return True

    def infer_shapes(self) -> Sequence[str]:
        return []

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        return self.shape if name == "images" else (self.shape[0], 2)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 7
        gpu, shape = self.engine.gpu, self.shape
        kind = np.uint8 if self.engine.dtype is Kind.UINT8 else np.float32

        def run() -> None:
            gpu.counts["executed"] += 1
            gpu.clock += 5.0
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            images = gpu.memory[self.addresses["images"]][:size].view(kind).reshape(shape)
            made = (2 * images.astype(np.float32).sum(1)).astype(np.float32)
            gpu.memory[self.addresses["logits"]][: made.nbytes] = made.reshape(-1).view(np.uint8)

        gpu.put(run)
        return True


class FakeLogger:
    ERROR, INTERNAL_ERROR, WARNING = "error", "internal", "warning"

    def __init__(self) -> None: ...


def module(release: str, gpu: Gpu, engine: FakeEngine | None, *, rtx: bool = False) -> Any:
    """A module of TensorRT: its runtime opens any plan as `engine`, or says why not when that is None."""

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if engine is None:
                self.logger.log("error", "magicTag:\n the version tag does not match")
            return engine

    if engine is not None and not rtx:
        names = TABLE[release]["names"]
        for name in ("device_memory_size", "device_memory_size_v2"):
            if not names[f"ICudaEngine.{name}"]:
                setattr(engine, name, None)
    words = {
        "__version__": release,
        "Runtime": Runtime,
        "ILogger": FakeLogger,
        "TensorIOMode": Mode,
        "LayerInformationFormat": SimpleNamespace(JSON="json"),
    }
    if rtx:
        words["CudaGraphStrategy"] = SimpleNamespace(DISABLED="off", WHOLE_GRAPH_CAPTURE="whole")
        words["DynamicShapesKernelSpecializationStrategy"] = SimpleNamespace(EAGER="eager")
    return SimpleNamespace(**words)
