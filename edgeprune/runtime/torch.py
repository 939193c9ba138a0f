"""A PyTorch network behind the Runner protocol, to measure beside deployed ones and as parity reference.

The one runtime that imports torch, and only when it is opened. It takes a callable: reading checkpoints is
above it. Eager, or compiled by torch.compile, whose compilation happens in the warm-up.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeprune.artifact import TensorSpec
from edgeprune.errors import MissingHere, ModelError, UsageError, missing_package
from edgeprune.runtime.runner import Array, Feeds

if TYPE_CHECKING:
    import torch


class TorchRunner:
    """A callable from tensors to tensors, run without gradients on one device."""

    name = "torch"

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        settings: Mapping[str, Any],
    ) -> None:
        import torch

        self.inputs, self.outputs, self.settings = inputs, outputs, dict(settings)
        if settings.get("compiled"):
            self.name = "torch-compile"
        self._function: Callable[..., Any] | None = function
        self._device = torch.device(str(settings["device"]))
        self._from_numpy, self._inference_mode = torch.from_numpy, torch.inference_mode
        self._threads_before = torch.get_num_threads()
        if threads := int(settings["threads"]):
            torch.set_num_threads(threads)

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """Run once; `.cpu()` waits for the device, so the time of a call is the time of the work."""
        if self._function is None:
            raise ModelError("this torch runner is closed; open it again")
        with self._inference_mode():
            tensors = [self._from_numpy(feeds[t.name]).to(self._device) for t in self.inputs]
            made = _as_sequence(self._function(*tensors))
            if len(made) != len(self.outputs):
                raise ModelError(f"the network returned {len(made)} tensors; expected {len(self.outputs)}")
            return {t.name: m.cpu().numpy() for t, m in zip(self.outputs, made, strict=True)}

    def close(self) -> None:
        """Give the number of threads back, which is a setting of the whole process."""
        if self._function is not None:
            import torch

            torch.set_num_threads(self._threads_before)
            self._function = None

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(
    function: Callable[..., Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    threads: int = 1,
    device: str = "cpu",
    compiled: bool = False,
) -> TorchRunner:
    """Wrap `function`: it takes a tensor for each of `inputs`, returns one (or a sequence) for `outputs`.

    A module is moved to `device` and set to eval. threads: of the whole process until `close`; 0 leaves them.
    compiled: through torch.compile, static shapes; MissingHere when there is no compiler that it can call.
    """
    if threads < 0:
        raise UsageError(f"--threads {threads}: expected 0 (all cores) or a positive number")
    try:
        import torch
    except ImportError as err:
        raise missing_package("torch", "compress", "running a checkpoint") from err
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingHere(
            f"--device {device}: torch {torch.__version__} sees no CUDA device here; take --device cpu"
        )
    if device.startswith("cuda:") and int(device.partition(":")[2]) >= torch.cuda.device_count():
        raise MissingHere(
            f"--device {device}: torch sees {torch.cuda.device_count()} CUDA devices here, from cuda:0 on"
        )
    if isinstance(function, torch.nn.Module):
        function = function.eval().to(device)
    if compiled:
        function = _compiled(torch, function, device)
    settings = {"device": device, "threads": threads, "compiled": compiled, "torch": torch.__version__}
    return TorchRunner(function, tuple(inputs), tuple(outputs), settings)


def _compiled(torch: Any, function: Callable[..., Any], device: str) -> Callable[..., Any]:
    if device == "cpu" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise MissingHere(
            "torch.compile needs a C++ compiler for the CPU and finds none (g++, clang++, $CXX): "
            "apt install g++, or take --runtime torch"
        )
    # It says on stderr that a CUDA toolkit is here without a GPU, which is nothing to a network on the CPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    made: Callable[..., Any] = torch.compile(function, dynamic=False)
    return made


def open_compiled(
    function: Callable[..., Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    threads: int = 1,
    device: str = "cpu",
) -> TorchRunner:
    """`open` with torch.compile."""
    return open(function, inputs, outputs, threads=threads, device=device, compiled=True)


def _as_sequence(made: Any) -> Sequence[torch.Tensor]:
    if isinstance(made, Mapping):
        return list(made.values())
    return made if isinstance(made, (tuple, list)) else [made]
