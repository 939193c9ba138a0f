"""CUDA by cuda-python (cuda.bindings.runtime). Never run on a GPU; its names are those of the installed package."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune.errors import MissingHere, ModelError
from edgeprune.runtime.cuda import Device
from edgeprune.runtime.runner import Array


class CudaPython:
    """The first GPU, by the CUDA runtime's primary context; see edgeprune.runtime.cuda.Cuda."""

    name = "cuda-python"
    captures = True

    def __init__(self) -> None:
        try:
            self._rt: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError:  # before 12.6 the package had another layout
            self._rt = importlib.import_module("cuda.cudart")
        error, count = self._rt.cudaGetDeviceCount()
        if int(error) or not count:
            raise MissingHere(
                f"no CUDA GPU answers here: {self._words(error) if int(error) else 'none is present'}"
            )
        found = self._call(self._rt.cudaGetDeviceProperties, 0)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        self.device = Device(name.strip("\0"), f"{found.major}.{found.minor}", bool(found.integrated))

    def malloc(self, size: int) -> int:
        """See Cuda."""
        return int(self._call(self._rt.cudaMalloc, size))

    def free(self, address: int) -> None:
        """See Cuda."""
        self._call(self._rt.cudaFree, address)

    def pinned(self, size: int) -> Array:
        """See Cuda."""
        address = int(self._call(self._rt.cudaHostAlloc, size, self._rt.cudaHostAllocDefault))
        held: Array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return held

    def unpin(self, host: Array) -> None:
        """See Cuda."""
        self._call(self._rt.cudaFreeHost, host.ctypes.data)

    def stream(self) -> int:
        """See Cuda."""
        return int(self._call(self._rt.cudaStreamCreateWithFlags, self._rt.cudaStreamNonBlocking))

    def close_stream(self, stream: int) -> None:
        """See Cuda."""
        self._call(self._rt.cudaStreamDestroy, stream)

    def synchronise(self, stream: int) -> None:
        """See Cuda."""
        self._call(self._rt.cudaStreamSynchronize, stream)

    def to_device(self, address: int, host: Array, stream: int) -> None:
        """See Cuda."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._rt.cudaMemcpyAsync, address, host.ctypes.data, host.nbytes, kind, stream)

    def to_host(self, host: Array, address: int, stream: int) -> None:
        """See Cuda."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._rt.cudaMemcpyAsync, host.ctypes.data, address, host.nbytes, kind, stream)

    def event(self) -> Any:
        """See Cuda."""
        return self._call(self._rt.cudaEventCreateWithFlags, self._rt.cudaEventDefault)

    def close_event(self, event: Any) -> None:
        """See Cuda."""
        self._call(self._rt.cudaEventDestroy, event)

    def record(self, event: Any, stream: int) -> None:
        """See Cuda."""
        self._call(self._rt.cudaEventRecord, event, stream)

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """See Cuda."""
        return float(self._call(self._rt.cudaEventElapsedTime, begin, end))

    def capture(self, work: Callable[[], None], stream: int) -> Any:
        """See Cuda."""
        self._call(
            self._rt.cudaStreamBeginCapture,
            stream,
            self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        try:
            work()
        finally:  # a stream left capturing takes nothing else
            error, graph = self._rt.cudaStreamEndCapture(stream)
        if int(error):
            raise ModelError(f"CUDA cannot capture this engine: {self._words(error)}")
        try:
            return self._call(self._rt.cudaGraphInstantiate, graph, 0)
        finally:
            self._call(self._rt.cudaGraphDestroy, graph)

    def launch(self, graph: Any, stream: int) -> None:
        """See Cuda."""
        self._call(self._rt.cudaGraphLaunch, graph, stream)

    def close_graph(self, graph: Any) -> None:
        """See Cuda."""
        self._call(self._rt.cudaGraphExecDestroy, graph)

    def close(self) -> None:
        """The runtime's context stays: torch may use it beside us."""

    def _call(self, function: Callable[..., Any], *given: Any) -> Any:
        """The value of a call that returns (error, value), or None; ModelError in CUDA's words."""
        error, *values = function(*given)
        if int(error):
            raise ModelError(f"{function.__name__}: {self._words(error)}")
        return values[0] if values else None

    def _words(self, error: Any) -> str:
        text = self._rt.cudaGetErrorString(error)[1]
        return text.decode() if isinstance(text, bytes) else str(text)
