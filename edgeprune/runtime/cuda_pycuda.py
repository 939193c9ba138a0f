"""CUDA by pycuda. Never run: pycuda is built from source against a CUDA toolkit, and there was none."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune.errors import MissingHere, ModelError
from edgeprune.runtime.cuda import Device
from edgeprune.runtime.runner import Array


class PyCuda:
    """The first GPU, in its primary context, which is the one that torch uses; see edgeprune.runtime.cuda.Cuda.

    pycuda's objects free what they hold when they are dropped, so they are kept by address.
    """

    name = "pycuda"
    captures = False

    def __init__(self) -> None:
        self._driver: Any = importlib.import_module("pycuda.driver")
        try:
            self._driver.init()
            gpu = self._driver.Device(0)
        except self._driver.Error as err:
            raise MissingHere(f"no CUDA GPU answers here: {err}") from err
        major, minor = gpu.compute_capability()
        integrated = bool(gpu.get_attribute(self._driver.device_attribute.INTEGRATED))
        self.device = Device(gpu.name(), f"{major}.{minor}", integrated)
        self._context: Any = gpu.retain_primary_context()
        self._context.push()
        self._held: dict[int, Any] = {}

    def malloc(self, size: int) -> int:
        """See Cuda."""
        made = self._call(self._driver.mem_alloc, size)
        self._held[int(made)] = made
        return int(made)

    def free(self, address: int) -> None:
        """See Cuda."""
        self._held.pop(address).free()

    def pinned(self, size: int) -> Array:
        """See Cuda."""
        made: Array = self._call(self._driver.pagelocked_empty, size, np.uint8)
        return made

    def unpin(self, host: Array) -> None:
        """Dropping the last reference frees it."""

    def stream(self) -> int:
        """See Cuda."""
        made = self._driver.Stream()
        self._held[int(made.handle)] = made
        return int(made.handle)

    def close_stream(self, stream: int) -> None:
        """See Cuda."""
        self._held.pop(stream)

    def synchronise(self, stream: int) -> None:
        """See Cuda."""
        self._call(self._held[stream].synchronize)

    def to_device(self, address: int, host: Array, stream: int) -> None:
        """See Cuda."""
        self._call(self._driver.memcpy_htod_async, address, host, self._held[stream])

    def to_host(self, host: Array, address: int, stream: int) -> None:
        """See Cuda."""
        self._call(self._driver.memcpy_dtoh_async, host, address, self._held[stream])

    def event(self) -> Any:
        """See Cuda."""
        return self._driver.Event()

    def close_event(self, event: Any) -> None:
        """Dropping the last reference frees it."""

    def record(self, event: Any, stream: int) -> None:
        """See Cuda."""
        event.record(self._held[stream])

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """See Cuda."""
        return float(begin.time_till(end))

    def capture(self, work: Callable[[], None], stream: int) -> Any:
        """Not in pycuda."""
        raise ModelError("pycuda cannot capture graphs; cuda-python can")

    def launch(self, graph: Any, stream: int) -> None:
        """Not in pycuda."""
        raise ModelError("pycuda cannot launch graphs; cuda-python can")

    def close_graph(self, graph: Any) -> None:
        """Nothing was captured."""

    def close(self) -> None:
        """See Cuda."""
        if self._context is not None:
            self._held.clear()
            self._context.pop()
            self._context = None

    def _call(self, function: Callable[..., Any], *given: Any) -> Any:
        try:
            return function(*given)
        except self._driver.Error as err:
            raise ModelError(f"CUDA by pycuda: {err}") from err
