"""CUDA by cuda-python (cuda.bindings.runtime). Never run on a GPU; its names are those of the installed package."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune.errors import MissingHere, ModelError
from edgeprune.runtime.cuda import Device
from edgeprune.runtime.runner import Array

try:
    from cuda.bindings import runtime as rt
except ImportError:  # before 12.6 the package had another layout
    from cuda import cudart as rt


class CudaPython:
    """The first GPU, by the CUDA runtime's primary context; see edgeprune.runtime.cuda.Cuda."""

    name = "cuda-python"
    captures = True

    def __init__(self) -> None:
        error, count = rt.cudaGetDeviceCount()
        if int(error) or not count:
            raise MissingHere(
                f"no CUDA GPU answers here: {_words(error) if int(error) else 'none is present'}"
            )
        found = _call(rt.cudaGetDeviceProperties, 0)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        self.device = Device(name.strip("\0"), f"{found.major}.{found.minor}", bool(found.integrated))

    def malloc(self, size: int) -> int:
        """See Cuda."""
        return int(_call(rt.cudaMalloc, size))

    def free(self, address: int) -> None:
        """See Cuda."""
        _call(rt.cudaFree, address)

    def pinned(self, size: int) -> Array:
        """See Cuda."""
        address = int(_call(rt.cudaHostAlloc, size, rt.cudaHostAllocDefault))
        held: Array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return held

    def unpin(self, host: Array) -> None:
        """See Cuda."""
        _call(rt.cudaFreeHost, host.ctypes.data)

    def stream(self) -> int:
        """See Cuda."""
        return int(_call(rt.cudaStreamCreateWithFlags, rt.cudaStreamNonBlocking))

    def close_stream(self, stream: int) -> None:
        """See Cuda."""
        _call(rt.cudaStreamDestroy, stream)

    def synchronise(self, stream: int) -> None:
        """See Cuda."""
        _call(rt.cudaStreamSynchronize, stream)

    def to_device(self, address: int, host: Array, stream: int) -> None:
        """See Cuda."""
        kind = rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(rt.cudaMemcpyAsync, address, host.ctypes.data, host.nbytes, kind, stream)

    def to_host(self, host: Array, address: int, stream: int) -> None:
        """See Cuda."""
        kind = rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call(rt.cudaMemcpyAsync, host.ctypes.data, address, host.nbytes, kind, stream)

    def event(self) -> Any:
        """See Cuda."""
        return _call(rt.cudaEventCreateWithFlags, rt.cudaEventDefault)

    def close_event(self, event: Any) -> None:
        """See Cuda."""
        _call(rt.cudaEventDestroy, event)

    def record(self, event: Any, stream: int) -> None:
        """See Cuda."""
        _call(rt.cudaEventRecord, event, stream)

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """See Cuda."""
        return float(_call(rt.cudaEventElapsedTime, begin, end))

    def capture(self, work: Callable[[], None], stream: int) -> Any:
        """See Cuda."""
        _call(rt.cudaStreamBeginCapture, stream, rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        finally:  # a stream left capturing takes nothing else
            error, graph = rt.cudaStreamEndCapture(stream)
        if int(error):
            raise ModelError(f"CUDA cannot capture this engine: {_words(error)}")
        try:
            return _call(rt.cudaGraphInstantiate, graph, 0)
        finally:
            _call(rt.cudaGraphDestroy, graph)

    def launch(self, graph: Any, stream: int) -> None:
        """See Cuda."""
        _call(rt.cudaGraphLaunch, graph, stream)

    def close_graph(self, graph: Any) -> None:
        """See Cuda."""
        _call(rt.cudaGraphExecDestroy, graph)

    def close(self) -> None:
        """The runtime's context stays: torch may use it beside us."""


def _call(function: Callable[..., Any], *given: Any) -> Any:
    """The value of a call that returns (error, value), or None; ModelError in CUDA's words."""
    error, *values = function(*given)
    if int(error):
        raise ModelError(f"{function.__name__}: {_words(error)}")
    return values[0] if values else None


def _words(error: Any) -> str:
    text = rt.cudaGetErrorString(error)[1]
    return text.decode() if isinstance(text, bytes) else str(text)
