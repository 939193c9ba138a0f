"""Engines of TensorRT and TensorRT-RTX behind the Runner protocol: page-locked buffers, one stream, events.

One path for both; RTX alone has a runtime cache, compiled kernels for the shapes at hand, and graphs that it captures
itself. Never run on a GPU: the contract is tested with a stand-in behind the CUDA interface and an engine object of the
types in edgeprune.runtime.trt.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgeprune import artifact as artifacts
from edgeprune.artifact import Artifact, TensorSpec
from edgeprune.errors import DataError, ModelError
from edgeprune.runtime import cuda as cudas
from edgeprune.runtime import engines
from edgeprune.runtime.cuda import Cuda
from edgeprune.runtime.engines import Opened
from edgeprune.runtime.runner import Array, Feeds

SPANS = ("h2d_ms", "gpu_ms", "d2h_ms")


@dataclass
class _Buffer:
    """One tensor: page-locked host memory and device memory, large enough for the profile's largest shape."""

    spec: TensorSpec
    host: Array
    address: int
    shape: tuple[int, ...] = ()

    @property
    def used(self) -> Array:
        """The part of the host memory that the current shape covers, as bytes."""
        return self.host[: int(np.prod(self.shape)) * np.dtype(self.spec.dtype).itemsize]

    @property
    def view(self) -> Array:
        """The same in the tensor's own type and shape."""
        return self.used.view(self.spec.dtype).reshape(self.shape)


class TensorRTRunner:
    """An engine with one context and one stream."""

    def __init__(self, opened: Opened, cuda: Cuda, graphs: bool) -> None:
        self.name = opened.runtime
        self.inputs, self.outputs = opened.inputs, opened.outputs
        self._opened, self._cuda, self._context = opened, cuda, opened.context
        self._graphs, self._ran = graphs and cuda.captures and not opened.rtx, False
        self._graph: Any = None
        self._closed = False
        self.settings: dict[str, Any] = {
            "device": str(cuda.device),
            "cuda": cuda.name,
            "version": opened.version,
            "cuda_graph": "by the library" if opened.rtx and graphs else self._graphs,
            "device_memory_bytes": opened.memory,
        }
        self._stream = cuda.stream()
        self._events = [cuda.event() for _ in range(4)]
        self._enqueue_ms = 0.0
        self._buffers: dict[str, _Buffer] = {}
        try:
            self._context.set_optimization_profile_async(0, self._stream)
            for spec in self.inputs:
                self._buffers[spec.name] = self._buffer(spec, opened.largest[spec.name])
            self._shape({spec.name: opened.largest[spec.name] for spec in self.inputs})
            for spec in self.outputs:
                self._buffers[spec.name] = self._buffer(spec, self._output_shape(spec.name))
        except BaseException:
            self.close()
            raise

    def _buffer(self, spec: TensorSpec, shape: tuple[int, ...]) -> _Buffer:
        size = max(1, int(np.prod(shape)) * np.dtype(spec.dtype).itemsize)
        made = _Buffer(spec, self._cuda.pinned(size), self._cuda.malloc(size), shape)
        if not self._context.set_tensor_address(spec.name, made.address):
            raise ModelError(f"{self._opened.file}: {self.name} refuses a buffer for {spec.name}")
        return made

    def _shape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise ModelError(
                    f"{self._opened.file}: input {name} cannot be {list(shape)}: {self._takes()}"
                )
            self._buffers[name].shape = shape
        missing = self._context.infer_shapes()
        if missing:
            raise ModelError(f"{self._opened.file}: nothing says the shape of {', '.join(missing)}")

    def _output_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(int(d) for d in self._context.get_tensor_shape(name))
        if min(shape, default=1) < 0:
            raise ModelError(
                f"{self._opened.file}: the shape of {name} depends on the images; it cannot be run here"
            )
        return shape

    def _takes(self) -> str:
        return ", ".join(
            f"{s.name} {s.dtype}{list(s.shape)} from {list(self._opened.smallest[s.name])} "
            f"to {list(self._opened.largest[s.name])}"
            for s in self.inputs
        )

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """Run once: outputs by name, the caller's own. ModelError says which shapes were given and expected."""
        if self._closed:
            raise ModelError(f"{self._opened.file}: this engine is closed; open it again")
        self._fit(feeds)
        for spec in self.inputs:
            np.copyto(self._buffers[spec.name].view, feeds[spec.name])
        cuda, stream = self._cuda, self._stream
        begin, copied, done, back = self._events
        cuda.record(begin, stream)
        for spec in self.inputs:
            held = self._buffers[spec.name]
            cuda.to_device(held.address, held.used, stream)
        cuda.record(copied, stream)
        self._enqueue()
        cuda.record(done, stream)
        for spec in self.outputs:
            held = self._buffers[spec.name]
            cuda.to_host(held.used, held.address, stream)
        cuda.record(back, stream)
        cuda.synchronise(stream)
        return {spec.name: self._buffers[spec.name].view.copy() for spec in self.outputs}

    def _fit(self, feeds: Feeds) -> None:
        """Check names, types and shapes; when a shape changed, tell the context and drop the graph of the old one."""
        names = [s.name for s in self.inputs]
        wrong = set(feeds) != set(names) or any(feeds[s.name].dtype != np.dtype(s.dtype) for s in self.inputs)
        if wrong or not all(self._inside(s.name, feeds[s.name].shape) for s in self.inputs):
            given = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in feeds.items())
            raise ModelError(f"{self._opened.file} received {given}; the engine takes {self._takes()}")
        shapes = {name: tuple(feeds[name].shape) for name in names}
        if all(self._buffers[name].shape == shape for name, shape in shapes.items()):
            return
        self._drop_graph()
        self._shape(shapes)
        for spec in self.outputs:
            self._buffers[spec.name].shape = self._output_shape(spec.name)

    def _inside(self, name: str, shape: Sequence[int]) -> bool:
        low, high = self._opened.smallest[name], self._opened.largest[name]
        return len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))

    def _enqueue(self) -> None:
        """Put the network on the stream; from the second run of a shape on as one captured graph, where that works."""
        if self._graphs and self._ran and self._graph is None:
            try:
                self._graph = self._cuda.capture(self._execute, self._stream)
            except ModelError as err:
                self._graphs = False
                self.settings["cuda_graph"] = f"off: {err}"
        start = time.perf_counter()
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._execute()
        self._enqueue_ms = 1e3 * (time.perf_counter() - start)
        self._ran = True

    def _execute(self) -> None:
        if not self._context.execute_async_v3(stream_handle=self._stream):
            raise ModelError(f"{self._opened.file}: {self.name} cannot run it: {self._opened.said()}")

    def spans(self) -> dict[str, float]:
        """Of the last run, in ms: h2d_ms, gpu_ms and d2h_ms by events on the stream, enqueue_ms by the host's clock."""
        pairs = zip(self._events, self._events[1:], strict=False)
        spans = (self._cuda.elapsed_ms(a, b) for a, b in pairs)
        return {**dict(zip(SPANS, spans, strict=True)), "enqueue_ms": self._enqueue_ms}

    def layers(self) -> str:
        """The engine's own table of layers, JSON text."""
        return self._opened.inspect()

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.close_graph(self._graph)
        self._graph, self._ran = None, False

    def close(self) -> None:
        """Free buffers, events and stream, and keep what RTX compiled; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._drop_graph()
        for held in self._buffers.values():
            self._cuda.free(held.address)
            self._cuda.unpin(held.host)
        self._buffers.clear()
        for event in self._events:
            self._cuda.close_event(event)
        self._cuda.close_stream(self._stream)
        compiled = self._opened.compiled()
        if compiled:
            with contextlib.suppress(
                OSError
            ):  # a read-only folder costs the next start some seconds, no more
                artifacts.write_atomically(self._opened.cache_file, compiled)
        self._cuda.close()

    def __enter__(self) -> TensorRTRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(
    artifact: Artifact | Path,
    *,
    runtime: str = "auto",
    cuda: Cuda | None = None,
    graphs: bool = True,
    threads: int = 0,
) -> TensorRTRunner:
    """Open an engine. runtime: "tensorrt", "tensorrt-rtx", or by its sidecar; threads: taken as every runtime does.

    MissingHere when the library, a GPU, the release or the kind of GPU is not here, with both versions and the
    rebuild command; ModelError when the library cannot open it.
    """
    if isinstance(artifact, Path) and not artifact.is_file():
        raise DataError(f"{artifact}: no such file; expected an engine")
    found = artifact if isinstance(artifact, Artifact) else artifacts.read(artifact)
    if found.kind != "engine":
        raise ModelError(
            f"{found.path} is not an engine; build one: edgeprune export {found.path} --to tensorrt"
        )
    if runtime == "auto":
        runtime = engines.runtime_of(found)
    engines.check_version(found, runtime, str(engines.module(runtime).__version__))
    gpu = cuda or cudas.open()
    try:
        engines.check_device(found, gpu.device)
        return TensorRTRunner(engines.load(found, runtime, graphs), gpu, graphs)
    except BaseException:
        gpu.close()
        raise
