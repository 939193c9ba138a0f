"""What a runner of engines needs of CUDA, and nothing more: memory, copies, a stream, events, a captured graph.

Two implementations, opened on use: cuda-python (wheels everywhere, graphs; the first choice) and pycuda (found on many
boards; no graphs). Addresses and streams are plain integers, because that is what TensorRT takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from edgeprune.errors import MissingHere, UsageError
from edgeprune.runtime.runner import Array

CHOICES = ("cuda-python", "pycuda")


@dataclass(frozen=True)
class Device:
    """The GPU: its name, capability such as "8.7", and whether it shares its memory with the CPU."""

    name: str
    capability: str
    integrated: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.capability})"


class Cuda(Protocol):
    """One GPU. Every call raises ModelError with CUDA's own words when it fails; sizes are bytes."""

    name: str
    captures: bool
    device: Device

    def malloc(self, size: int) -> int:
        """Device memory: its address."""
        ...

    def free(self, address: int) -> None:
        """Give device memory back."""
        ...

    def pinned(self, size: int) -> Array:
        """Page-locked host memory: (size,) uint8."""
        ...

    def unpin(self, host: Array) -> None:
        """Give page-locked memory back; the array must not be touched after."""
        ...

    def stream(self) -> int:
        """Make a stream that does not wait for the default one."""
        ...

    def close_stream(self, stream: int) -> None:
        """Destroy a stream."""
        ...

    def synchronise(self, stream: int) -> None:
        """Wait until everything on the stream is done."""
        ...

    def to_device(self, address: int, host: Array, stream: int) -> None:
        """Begin a copy of all of `host`, which is page-locked."""
        ...

    def to_host(self, host: Array, address: int, stream: int) -> None:
        """Begin a copy that fills `host`, which is page-locked."""
        ...

    def event(self) -> Any:
        """Make an event that keeps time."""
        ...

    def close_event(self, event: Any) -> None:
        """Destroy an event."""
        ...

    def record(self, event: Any, stream: int) -> None:
        """Mark this place of the stream."""
        ...

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """Milliseconds between two events that have happened."""
        ...

    def capture(self, work: Callable[[], None], stream: int) -> Any:
        """What `work` puts on the stream, as a graph that can be launched; only where `captures`."""
        ...

    def launch(self, graph: Any, stream: int) -> None:
        """Put a whole graph on the stream."""
        ...

    def close_graph(self, graph: Any) -> None:
        """Destroy a graph."""
        ...

    def close(self) -> None:
        """Leave the GPU; may be called twice."""
        ...


def open(choice: str = "auto") -> Cuda:
    """The GPU by the package that is asked for, or by the first that is installed.

    MissingHere names what to install, or that no driver or GPU answers.
    """
    if choice not in ("auto", *CHOICES):
        raise UsageError(f"CUDA by {choice!r}: expected auto, {', '.join(CHOICES)}")
    if choice in ("auto", "cuda-python"):
        try:
            from edgeprune.runtime import cuda_python

            return cuda_python.CudaPython()
        except ImportError:
            if choice != "auto":
                raise _missing("cuda-python", "cuda") from None
    try:
        from edgeprune.runtime import cuda_pycuda

        return cuda_pycuda.PyCuda()
    except ImportError:
        raise _missing("cuda-python", "cuda") if choice == "auto" else _missing("pycuda", "pycuda") from None


def _missing(package: str, extra: str) -> MissingHere:
    return MissingHere(
        f"running an engine needs {package}, which is not installed here: pip install 'edgeprune[{extra}]' "
        "(on JetPack 6: pip install 'cuda-python<13')"
    )
