"""ONNX files run by ONNX Runtime: the provider that was asked for or an error, never a silent fallback.

Providers: CPU, CUDA, TensorRT and OpenVINO, where the installed build has them. With IO binding the outputs stay in
memory that ONNX Runtime keeps from call to call, on the device for CUDA and TensorRT until they are copied back.

Settings are those of a fair comparison: a stated number of threads, one operator after another, and no
spinning, which on a shared machine takes the cores from the very work it waits for (25.1 ms against 17.1
ms, INT8 ResNet-18, two threads on two shared cores).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeprune.artifact import Artifact, TensorSpec
from edgeprune.errors import DataError, MissingHere, ModelError, UsageError, missing_package
from edgeprune.runtime import ort_errors
from edgeprune.runtime.runner import Array, Feeds

CPU = "CPUExecutionProvider"
PROVIDERS: Mapping[str, tuple[str, str]] = {
    "cpu": (CPU, "pip install 'edgeprune[cpu]'"),
    "cuda": ("CUDAExecutionProvider", "pip install 'edgeprune[gpu]' (x86-64, with an NVIDIA driver)"),
    "tensorrt": (
        "TensorrtExecutionProvider",
        "pip install 'edgeprune[gpu]' tensorrt (x86-64, NVIDIA driver)",
    ),
    "openvino": ("OpenVINOExecutionProvider", "pip install onnxruntime-openvino in place of onnxruntime"),
}
"""Short names -> ONNX Runtime's name, and what brings it."""
_ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class OrtRunner:
    """An ONNX Runtime session behind the Runner protocol."""

    name = "ort"

    def __init__(
        self, session: Any, settings: Mapping[str, Any], path: Path | None = None, binding: Any = None
    ) -> None:
        self.inputs = tuple(_spec(t) for t in session.get_inputs())
        self.outputs = tuple(_spec(t) for t in session.get_outputs())
        self.settings = dict(settings)
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self._names = [t.name for t in self.outputs]
        self._session = session
        self._path, self._binding = path, binding
        if binding is not None:
            self.infer = self._infer_bound  # type: ignore[method-assign]

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """Run once: outputs by name. ModelError says which shapes were given and expected."""
        try:
            return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        except Exception as err:
            raise self._explain(feeds, err) from err

    def _infer_bound(self, feeds: Feeds) -> dict[str, Array]:
        binding = self._binding
        try:
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            self._session.run_with_iobinding(binding)
            made = zip(self._names, binding.copy_outputs_to_cpu(), strict=True)
            return {name: array.copy() for name, array in made}  # the next call writes into the bound ones
        except Exception as err:
            raise self._explain(feeds, err) from err

    def layer_times(self, feeds: Feeds, *, runs: int = 30) -> tuple[dict[str, Any], ...]:
        """Median time of each operator by ONNX Runtime's profiler, in a session beside this one, in graph order.

        Keys as in edgeprune.runtime.ort_profile. ModelError for a session that has no file.
        """
        from edgeprune.runtime import ort_profile

        if self._path is None:
            raise ModelError(
                "this ONNX Runtime session was not opened from a file: its layers cannot be timed"
            )
        return ort_profile.layers(self._path, self.settings, feeds, runs)

    def _explain(self, feeds: Feeds, err: Exception) -> ModelError:
        if self._session is None:
            return ModelError("this ONNX Runtime session is closed; open the file again")
        given = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in feeds.items())
        wanted = ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in self.inputs)
        return ModelError(
            f"ONNX Runtime received {given}; the network takes {wanted}: {ort_errors.words(err)}"
        )

    def close(self) -> None:
        """Free the session."""
        self._session = self._binding = None

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(
    artifact: Artifact | Path,
    *,
    threads: int = 1,
    provider: str = CPU,
    spinning: bool = False,
    io_binding: bool = False,
) -> OrtRunner:
    """Open an ONNX file. threads: CPU threads inside an operator, 0 for all cores.

    provider: ONNX Runtime's own name, or cpu, cuda, tensorrt or openvino.
    MissingHere when ONNX Runtime or the provider is not here, or does not run such a file; BrokenModel when the file
    is not whole or no valid graph.
    """
    path = artifact.path if isinstance(artifact, Artifact) else artifact
    if threads < 0:
        raise UsageError(f"--threads {threads}: expected 0 (all cores) or a positive number")
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an ONNX file")
    try:
        import onnxruntime
    except ImportError as err:
        raise missing_package("onnxruntime", "cpu", "running an ONNX file") from err
    provider = _available(onnxruntime, provider)
    options = _options(onnxruntime, threads, provider, spinning)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as err:
        raise ort_errors.refusal(path, err, onnxruntime.__version__) from err
    used = session.get_providers()
    if used[:1] != [provider]:
        raise MissingHere(
            f"{path}: asked for {provider}, ONNX Runtime took {used[0]}; run `edgeprune doctor`"
        )
    settings = {
        "provider": provider,
        "device": "cuda" if provider in _ON_GPU else "cpu",
        "threads": threads,
        "spin_wait": spinning,
        "io_binding": io_binding,
        "onnxruntime": onnxruntime.__version__,
    }
    return OrtRunner(session, settings, path, _bound(session, provider) if io_binding else None)


def _available(onnxruntime: Any, word: str) -> str:
    """ONNX Runtime's name of a provider; MissingHere says what would bring it."""
    provider, remedy = PROVIDERS.get(word, (word, ""))
    known = dict(PROVIDERS.values())
    available = onnxruntime.get_available_providers()
    if provider not in available:
        if provider not in known:
            raise UsageError(f"--provider {word}: expected one of {', '.join(PROVIDERS)}")
        raise MissingHere(
            f"ONNX Runtime {onnxruntime.__version__} here has no {provider}, only {', '.join(available)}: "
            f"{remedy or known[provider]}, or take the CPU"
        )
    return provider


def _bound(session: Any, provider: str) -> Any:
    """A binding whose outputs ONNX Runtime allocates once, on the provider's device."""
    binding = session.io_binding()
    for tensor in session.get_outputs():
        binding.bind_output(tensor.name, "cuda" if provider in _ON_GPU else "cpu")
    return binding


def _options(onnxruntime: Any, threads: int, provider: str, spinning: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # warnings about unused initialisers are not the user's business
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    # On x64 without VNNI, int8 products are summed in 16 bits and saturate (EfficientNet-Lite0: 39 of 86 answers
    # changed); this makes ONNX Runtime sum them so that they do not (7 of 86, as in float arithmetic).
    options.add_session_config_entry("session.x64quantprecision", "1")
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _spec(tensor: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else str(d or "?") for d in tensor.shape)
    return TensorSpec(tensor.name, shape, _DTYPES.get(tensor.type, tensor.type))
