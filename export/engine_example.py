"""Runs an engine of TensorRT or TensorRT-RTX on one image, by numpy and cuda-python; classify.py uses it."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def outputs(file: str, images: Any) -> dict[str, Any]:
    """What the engine answers, by name; images as the network takes them, of which the first is asked."""
    module, beside = "tensorrt_rtx" if "rtx" in Path(file).name else "tensorrt", Path(f"{file}.json")
    if beside.is_file():  # written with the engine: which library it is for
        module = json.loads(beside.read_text())["meta"]["engine"]["runtime"].replace("-", "_")
    trt, rt = importlib.import_module(module), importlib.import_module("cuda.bindings.runtime")
    logger, addresses, held = trt.Logger(), dict[str, int](), dict[str, Any]()
    kinds = rt.cudaMemcpyKind.cudaMemcpyHostToDevice, rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
    engine = trt.Runtime(logger).deserialize_cuda_engine(Path(file).read_bytes())
    if engine is None:
        raise RuntimeError(f"{module} {trt.__version__} does not open {file} here; build it on this machine")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for name in sorted(names, key=lambda n: engine.get_tensor_mode(n) != trt.TensorIOMode.INPUT):
        if not held:  # the input comes first; the outputs' shapes follow from it
            count = engine.get_tensor_shape(name)[0]
            count = count if count > 0 else engine.get_tensor_profile_shape(name, 0)[0][0]
            held[name] = np.repeat(images, count, 0)
            context.set_input_shape(name, held[name].shape)
        else:
            kind = trt.nptype(engine.get_tensor_dtype(name))
            held[name] = np.empty(tuple(context.get_tensor_shape(name)), kind)
        addresses[name] = int(rt.cudaMalloc(held[name].nbytes)[1])
        context.set_tensor_address(name, addresses[name])
        rt.cudaMemcpy(addresses[name], held[name].ctypes.data, held[name].nbytes, kinds[0])
    context.execute_async_v3(stream_handle=int(rt.cudaStreamCreate()[1]))
    rt.cudaDeviceSynchronize()
    for name, array in held.items():
        rt.cudaMemcpy(array.ctypes.data, addresses[name], array.nbytes, kinds[1])
        rt.cudaFree(addresses[name])
    return held
