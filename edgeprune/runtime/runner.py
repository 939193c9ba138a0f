"""The one protocol of everything that runs a network: it has no torch, no ONNX and no device in it.

A runtime is one file beside this one with one function, `open(...)`, that returns a Runner. `infer` is what a
benchmark times, so an implementation adds nothing to it but the call of its library.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray

from edgeprune.artifact import TensorSpec

Array = NDArray[Any]
Feeds = Mapping[str, Array]
"""Input name -> array of the shape and dtype that the runner's `inputs` state."""


class Runner(Protocol):
    """An opened network.

    name: the runtime, such as "ort". inputs, outputs: in the network's own order.
    settings: what a result must record to be comparable (threads, provider, spinning ...): JSON values.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...  # noqa: D102

    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """Run once and return every output by name; the arrays are the caller's own."""
        ...

    def close(self) -> None:
        """Give back memory and settings; may be called twice."""
        ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
