"""Name the classes of images: python classify.py MODEL IMAGE...

MODEL is an .onnx file of this folder (needs onnxruntime), or an engine built from one (needs cuda-python and tensorrt;
tensorrt_rtx when its name says so). Of an image the decoder is Pillow's; a .npy file, uint8 (H, W, 3) at the network's
size, needs numpy alone. This file needs nothing else, and may be copied and changed.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def load(file: str, pre: dict[str, Any]) -> Any:
    """The pixels of an image at the network's size: uint8 (H, W, 3)."""
    if file.endswith(".npy"):
        return np.load(file)
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    (height, width), (covered_h, covered_w) = pre["size"], pre["covered"]
    w, h = image.size  # the short side covers size / crop, then the centre is cut out
    wide = covered_h * w <= covered_w * h
    to = (covered_w, max(height, covered_w * h // w)) if wide else (max(width, covered_h * w // h), covered_h)
    image = image.resize(to, Image.Resampling[pre["interpolation"].upper()])
    top, left = round((to[1] - height) / 2), round((to[0] - width) / 2)
    return np.asarray(image)[top : top + height, left : left + width]


def prepare(pixels: Any, pre: dict[str, Any]) -> Any:
    """What the network takes of one image: (1, ...), normalised float32, or uint8 when its graph normalises."""
    batch = pixels[None] if pre.get("layout") == "nhwc" else pixels.transpose(2, 0, 1)[None]
    if not pre.get("layout"):
        mean, std = (np.float32(pre[key]).reshape(3, 1, 1) for key in ("mean", "std"))
        batch = ((batch / np.float32(255) - mean) / std).astype(np.float32)
    return np.ascontiguousarray(batch)


def by_onnxruntime(file: str, images: Any) -> dict[str, Any]:
    """Outputs by name."""
    ort = importlib.import_module("onnxruntime")
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    fed = np.repeat(images, first.shape[0], 0) if isinstance(first.shape[0], int) else images
    return dict(
        zip([t.name for t in session.get_outputs()], session.run(None, {first.name: fed}), strict=True)
    )


def by_engine(file: str, images: Any, module: str) -> dict[str, Any]:
    """Outputs by name, from a plan file of TensorRT or TensorRT-RTX."""
    trt, rt = importlib.import_module(module), importlib.import_module("cuda.bindings.runtime")
    logger = trt.Logger()
    engine = trt.Runtime(logger).deserialize_cuda_engine(Path(file).read_bytes())
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    entry = next(n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
    batch = max(1, engine.get_tensor_shape(entry)[0])
    arrays = {entry: np.ascontiguousarray(np.repeat(images, batch, 0))}
    context.set_input_shape(entry, arrays[entry].shape)
    addresses = {}
    for name in names:
        if name != entry:
            kind = trt.nptype(engine.get_tensor_dtype(name))
            arrays[name] = np.empty(tuple(context.get_tensor_shape(name)), kind)
        addresses[name] = int(rt.cudaMalloc(arrays[name].nbytes)[1])
        context.set_tensor_address(name, addresses[name])
    stream = int(rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking)[1])
    kinds, fed = rt.cudaMemcpyKind, arrays.pop(entry)
    rt.cudaMemcpy(addresses[entry], fed.ctypes.data, fed.nbytes, kinds.cudaMemcpyHostToDevice)
    context.execute_async_v3(stream_handle=stream)
    rt.cudaStreamSynchronize(stream)
    for name, array in arrays.items():
        rt.cudaMemcpy(array.ctypes.data, addresses[name], array.nbytes, kinds.cudaMemcpyDeviceToHost)
    for address in addresses.values():
        rt.cudaFree(address)
    return arrays


def best(outputs: dict[str, Any], top: int) -> list[tuple[int, float]]:
    """The likeliest classes of the first image with their probabilities."""
    if "classes" in outputs:
        return list(zip(outputs["classes"][0].tolist(), outputs["scores"][0].tolist(), strict=True))[:top]
    shares: Any = np.float64(
        outputs.get("probabilities", outputs.get("logits", next(iter(outputs.values()))))[0]
    )
    if "probabilities" not in outputs:
        shares = np.exp(shares - shares.max()) / np.exp(shares - shares.max()).sum()
    return [(int(k), float(shares[k])) for k in np.argsort(-shares)[:top]]


def main(model: str, files: list[str]) -> None:
    """Print file, class and probability, the likeliest three of each image."""
    pre = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
    labels = (HERE / "labels.txt").read_text(encoding="utf-8").splitlines()
    for file in files:
        images = prepare(load(file, pre), pre)
        if model.endswith(".onnx"):
            outputs = by_onnxruntime(model, images)
        else:
            outputs = by_engine(model, images, "tensorrt_rtx" if "rtx" in Path(model).name else "tensorrt")
        for k, share in best(outputs, 3):
            print(f"{file}\t{labels[k]}\t{share:.4f}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
