"""The TensorRT names that EdgePrune uses, as types: builder and runner are written against these alone.

`tensorrt` (8.6 to 11) and `tensorrt_rtx` both fit. A test compares every name with what the installed tensorrt_rtx
has, and with a table made from the published tensorrt packages. What is in `OPTIONAL` is not in all of them, and is
used behind a switch or `getattr` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tensor(Protocol):
    """ITensor: an input or output of a network; -1 in its shape is free."""

    name: str
    shape: Sequence[int]
    dtype: Any


class Network(Protocol):
    """INetworkDefinition."""

    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> Tensor: ...  # noqa: D102
    def get_output(self, index: int) -> Tensor: ...  # noqa: D102


class OptimizationProfile(Protocol):
    """IOptimizationProfile."""

    def set_shape(self, name: str, *sizes: Sequence[int]) -> None: ...  # noqa: D102


class TimingCache(Protocol):
    """ITimingCache."""

    def serialize(self) -> Any: ...  # noqa: D102


class BuilderConfig(Protocol):
    """IBuilderConfig."""

    profiling_verbosity: Any
    builder_optimization_level: int
    hardware_compatibility_level: Any
    default_device_type: Any
    DLA_core: int
    progress_monitor: Any
    num_compute_capabilities: int

    def set_memory_pool_limit(self, pool: Any, size: int) -> None: ...  # noqa: D102
    def set_flag(self, flag: Any) -> None: ...  # noqa: D102
    def add_optimization_profile(self, profile: OptimizationProfile) -> int: ...  # noqa: D102
    def create_timing_cache(self, data: bytes) -> TimingCache: ...  # noqa: D102
    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool: ...  # noqa: D102
    def get_timing_cache(self) -> TimingCache: ...  # noqa: D102
    def set_compute_capability(self, capability: Any, index: int) -> bool: ...  # noqa: D102


class Builder(Protocol):
    """Builder."""

    num_DLA_cores: int

    def create_network(self, flags: int) -> Network: ...  # noqa: D102
    def create_builder_config(self) -> BuilderConfig: ...  # noqa: D102
    def create_optimization_profile(self) -> OptimizationProfile: ...  # noqa: D102
    def build_serialized_network(self, network: Network, config: BuilderConfig) -> Any: ...  # noqa: D102


class ParserError(Protocol):
    """ParserError."""

    def desc(self) -> str: ...  # noqa: D102
    def node_name(self) -> str: ...  # noqa: D102


class Parser(Protocol):
    """OnnxParser."""

    num_errors: int

    def parse_from_file(self, path: str) -> bool: ...  # noqa: D102
    def get_error(self, index: int) -> ParserError: ...  # noqa: D102


class RuntimeCache(Protocol):
    """IRuntimeCache of RTX: what was compiled for this GPU."""

    def serialize(self) -> Any: ...  # noqa: D102
    def deserialize(self, data: bytes) -> bool: ...  # noqa: D102


class RuntimeConfig(Protocol):
    """IRuntimeConfig."""

    cuda_graph_strategy: Any
    dynamic_shapes_kernel_specialization_strategy: Any

    def create_runtime_cache(self) -> RuntimeCache: ...  # noqa: D102
    def set_runtime_cache(self, cache: RuntimeCache) -> bool: ...  # noqa: D102


class Context(Protocol):
    """IExecutionContext."""

    def set_optimization_profile_async(self, index: int, stream: int) -> bool: ...  # noqa: D102
    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool: ...  # noqa: D102
    def infer_shapes(self) -> Sequence[str]: ...  # noqa: D102
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...  # noqa: D102
    def set_tensor_address(self, name: str, address: int) -> bool: ...  # noqa: D102
    def execute_async_v3(self, stream_handle: int) -> bool: ...  # noqa: D102


class Inspector(Protocol):
    """EngineInspector."""

    def get_engine_information(self, form: Any) -> str: ...  # noqa: D102


class Engine(Protocol):
    """ICudaEngine."""

    num_io_tensors: int
    device_memory_size: int
    device_memory_size_v2: int

    def get_tensor_name(self, index: int) -> str: ...  # noqa: D102
    def get_tensor_mode(self, name: str) -> Any: ...  # noqa: D102
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...  # noqa: D102
    def get_tensor_dtype(self, name: str) -> Any: ...  # noqa: D102
    def get_tensor_profile_shape(self, name: str, profile: int) -> Sequence[Sequence[int]]: ...  # noqa: D102
    def create_execution_context(self, config: Any = ...) -> Context: ...  # noqa: D102
    def create_engine_inspector(self) -> Inspector: ...  # noqa: D102
    def create_runtime_config(self) -> RuntimeConfig: ...  # noqa: D102


class Runtime(Protocol):
    """Runtime."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None: ...  # noqa: D102


DTYPES: Mapping[str, str] = {"FLOAT": "float32", "HALF": "float16"}
"""DataType -> numpy name; the others are each other's in small letters (INT8, INT32, INT64, UINT8, BOOL)."""

CLASSES: Mapping[str, type] = {
    "ITensor": Tensor,
    "INetworkDefinition": Network,
    "IOptimizationProfile": OptimizationProfile,
    "ITimingCache": TimingCache,
    "IBuilderConfig": BuilderConfig,
    "Builder": Builder,
    "ParserError": ParserError,
    "OnnxParser": Parser,
    "IRuntimeCache": RuntimeCache,
    "IRuntimeConfig": RuntimeConfig,
    "IExecutionContext": Context,
    "EngineInspector": Inspector,
    "ICudaEngine": Engine,
    "Runtime": Runtime,
}
MEMBERS: Mapping[str, tuple[str, ...]] = {
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED", "EXPLICIT_BATCH"),
    "BuilderFlag": ("FP16", "INT8", "GPU_FALLBACK", "VERSION_COMPATIBLE"),
    "MemoryPoolType": ("WORKSPACE",),
    "ProfilingVerbosity": ("DETAILED",),
    "HardwareCompatibilityLevel": ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
    "DeviceType": ("DLA",),
    "TensorIOMode": ("INPUT",),
    "LayerInformationFormat": ("JSON",),
    "ILogger": ("ERROR", "INTERNAL_ERROR", "WARNING"),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
    "ComputeCapability": ("SM75", "SM86", "SM89", "SM120"),
    "CudaGraphStrategy": ("DISABLED", "WHOLE_GRAPH_CAPTURE"),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
}
OPTIONAL: Mapping[str, str] = {
    "IBuilderConfig.progress_monitor": "not in 8.6",
    "IProgressMonitor": "not in 8.6",
    "ParserError.node_name": "not in 8.6",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "not in 8.6",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "8.6 asks for it; gone in 11 and RTX",
    "BuilderFlag.FP16": "for 8.6 alone; gone in 11 and RTX",
    "BuilderFlag.INT8": "for 8.6 alone; gone in 11 and RTX",
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": "from 10.13",
    "ICudaEngine.device_memory_size": "gone in 11 and RTX",
    "ICudaEngine.device_memory_size_v2": "not in 8.6",
    "ICudaEngine.create_runtime_config": "from 10.13",
    "IRuntimeConfig": "from 10.13",
    "IRuntimeConfig.cuda_graph_strategy": "RTX alone",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": "RTX alone",
    "IRuntimeConfig.create_runtime_cache": "RTX alone",
    "IRuntimeConfig.set_runtime_cache": "RTX alone",
    "IRuntimeCache": "RTX alone",
    "IBuilderConfig.num_compute_capabilities": "RTX alone",
    "IBuilderConfig.set_compute_capability": "RTX alone",
    "ComputeCapability": "RTX alone",
    "CudaGraphStrategy": "RTX alone",
    "DynamicShapesKernelSpecializationStrategy": "RTX alone",
}


def names() -> dict[str, tuple[str, ...]]:
    """Every class of the TensorRT module that is used -> every member of it that is used."""
    found = {
        word: tuple(sorted(n for n in {*vars(kind), *kind.__annotations__} if not n.startswith("_")))
        for word, kind in CLASSES.items()
    }
    return {**found, **MEMBERS}


def optional(owner: str, member: str) -> bool:
    """Whether a name is missing from a release that is supported, and so must stand behind a switch."""
    return owner in OPTIONAL or f"{owner}.{member}" in OPTIONAL
