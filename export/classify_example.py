"""python classify.py MODEL IMAGE...   MODEL: .onnx (onnxruntime), or an engine (tensorrt[_rtx] and cuda-python)."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def read(file: str, pre: dict[str, Any]) -> Any:
    """What the network takes of one image; a .npy file holds uint8 (H, W, 3) at its size, and needs no Pillow."""
    (height, width), (covered_h, covered_w) = pre["size"], pre["covered"]
    if file.endswith(".npy"):
        batch = np.load(file)[None]
        if batch.shape[1:] != (height, width, 3):
            raise ValueError(f"{file} is {batch.shape[1:]}; expected {(height, width, 3)}")
    else:
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        # the short side covers size / crop, then the centre is cut out
        by = max(covered_h / image.height, covered_w / image.width)
        w, h = (max(n, int(by * side + 1e-6)) for n, side in ((width, image.width), (height, image.height)))
        image = image.resize((w, h), Image.Resampling[pre["interpolation"].upper()])
        top, left = round((h - height) / 2), round((w - width) / 2)
        batch = np.asarray(image)[None, top : top + height, left : left + width]
    if not pre.get("layout"):  # else the graph normalises
        batch = (batch / np.float32(255) - np.float32(pre["mean"])) / np.float32(pre["std"])
    return np.ascontiguousarray(batch if pre.get("layout") == "nhwc" else batch.transpose(0, 3, 1, 2))


def by_onnxruntime(file: str, images: Any) -> dict[str, Any]:
    """Outputs by name."""
    ort = importlib.import_module("onnxruntime")
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    first, names = session.get_inputs()[0], [t.name for t in session.get_outputs()]
    fed = np.repeat(images, first.shape[0], 0) if isinstance(first.shape[0], int) else images
    return dict(zip(names, session.run(None, {first.name: fed}), strict=True))


def main(model: str, *files: str) -> None:
    """Print image, class and probability: the likeliest three of each image."""
    here = Path(__file__).parent
    engine = not model.endswith(".onnx")
    run = importlib.import_module("run_engine").outputs if engine else by_onnxruntime
    pre = json.loads((here / "preprocessing.json").read_text(encoding="utf-8"))
    labels = (here / "labels.txt").read_text(encoding="utf-8").splitlines()
    for file in files:
        fed = read(file, pre)
        got = run(model, fed)
        if "classes" in got:
            order, shares = got["classes"][0], got["scores"][0]
        else:
            first = np.float64(got.get("probabilities", next(iter(got.values())))[0])
            all_of: Any = first if "probabilities" in got else np.exp(first - first.max())
            order = np.argsort(-all_of)[:3]
            shares = all_of[order] / all_of.sum()
        for k, share in list(zip(order, shares, strict=True))[:3]:
            print(f"{file}\t{labels[k]}\t{share:.4f}")  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {__doc__}")
    try:
        main(*sys.argv[1:])
    except Exception as err:  # whatever a runtime raises: one line
        sys.exit(f"error: {type(err).__name__}: {' '.join(str(err).split())}")
