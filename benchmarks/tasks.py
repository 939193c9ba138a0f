"""The tasks that methods are measured on: which cloud model, which images, and how long each stage trains.

Every stage is a command of the tool with these words, so a row can be typed by hand. Target labels are given with
`--evaluate` alone.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from benchmarks.data import locate
from edgeprune import images

PARTIAL = ("dog", "elephant", "giraffe", "guitar")


@dataclass(frozen=True)
class Task:
    """One cloud model, one target.

    images: from --work and --data the source (None without), the unlabelled target, and what accuracy is measured on.
    model: words that name the cloud model to `adapt`. common: words that every command of the task shares. cloud: words
    that train the cloud model on source, none when it comes trained. adapt, prune: words of those stages. trust: words
    that later commands need to open its runs. older: words that name the weights before the cloud's fine-tuning, for
    objectives that use them.
    """

    name: str
    images: Callable[[Path, Path | None], tuple[Path | None, Path, Path]]
    model: Callable[[Path | None], tuple[str, ...]]
    common: tuple[str, ...]
    cloud: tuple[str, ...]
    adapt: tuple[str, ...]
    prune: tuple[str, ...]
    trust: tuple[str, ...] = ()
    older: Callable[[Path | None], tuple[str, ...]] | None = None


def _digits(work: Path, data: Path | None) -> tuple[Path, Path, Path]:
    from edgeprune.data import digits

    digits.write_mnist(work / "data" / "mnist")
    digits.write_optdigits(work / "data" / "optdigits")
    return work / "data" / "mnist", work / "data" / "optdigits", work / "data" / "optdigits"


def _pacs(work: Path, data: Path | None) -> tuple[Path, Path, Path]:
    target = locate("pacs160_art_painting", data)
    return locate("pacs160_photo", data), target, target


def _pacs_partial(work: Path, data: Path | None) -> tuple[Path, Path, Path]:
    """The target holds four of the seven classes: a folder of links to theirs."""
    source, whole, _ = _pacs(work, data)
    part = work / "data" / "pacs_partial"
    part.mkdir(parents=True, exist_ok=True)
    for name in PARTIAL:
        if not (part / name).exists():
            (part / name).symlink_to((whole / name).resolve(), target_is_directory=True)
    return source, part, part


def few(labelled: Path, out: Path, seed: int, count: int = 10) -> Path:
    """`count` files of each class of a labelled folder or zip, by the seed, copied to `out` unless it is there."""
    if out.exists():
        return out
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    refs = [
        ref for ref in images.find(labelled) if ref.label is not None and images.looks_like_image(ref.name)
    ]
    random = np.random.default_rng(seed)
    for label in images.classes(refs):
        mine = [ref for ref in refs if ref.label == label]
        (part / label).mkdir(parents=True)
        for i in sorted(random.permutation(len(mine))[:count]):
            name = PurePosixPath(mine[i].name).name
            if mine[i].root.is_dir():
                shutil.copyfile(mine[i].root / mine[i].name, part / label / name)
            else:
                with zipfile.ZipFile(mine[i].root) as archive:
                    (part / label / name).write_bytes(archive.read(mine[i].name))
    part.rename(out)
    return out


def _cifar(work: Path, data: Path | None) -> tuple[None, Path, Path]:
    return None, locate("cifar10_jpeg_train", data), locate("cifar10_jpeg_test", data)


def _lite0(data: Path | None) -> tuple[str, ...]:
    weights = str(locate("efficientnet-lite0-57934424.pth", data))
    shape = ("--size", "128", "--mean", "0.5", "--std", "0.5", "--classes", "7")
    return "timm:tf_efficientnet_lite0", "--weights", weights, "--map-by-order", *shape


def _imagenet(data: Path | None) -> tuple[str, ...]:
    return "--pretrained", str(locate("efficientnet-lite0-57934424.pth", data)), "--map-by-order"


def _resnet56(data: Path | None) -> tuple[str, ...]:
    weights = str(locate("resnet56_cifar10.safetensors", data))
    return "examples.resnet_cifar:resnet56", "--weights", weights, "--classes", "examples/cifar10_classes.txt"


def _small(data: Path | None) -> tuple[str, ...]:
    return "edgeprune.digits_net:digits_net", "--weights", "none"


TASKS = {
    t.name: t
    for t in (
        Task(
            "digits",
            _digits,
            _small,
            ("--no-flip", "--batch", "64", "--lr", "2e-3"),
            ("--steps", "150"),
            ("--steps", "200"),
            ("--recover", "8"),
        ),
        Task(
            "pacs",
            _pacs,
            _lite0,
            ("--batch", "32"),
            ("--steps", "150", "--lr", "5e-4"),
            ("--steps", "300", "--lr", "5e-4"),
            ("--recover", "6"),
            older=_imagenet,
        ),
        Task(
            "pacs-partial",
            _pacs_partial,
            _lite0,
            ("--batch", "32"),
            ("--steps", "150", "--lr", "5e-4"),
            ("--steps", "150", "--lr", "5e-4"),
            ("--recover", "6"),
            older=_imagenet,
        ),
        Task(
            "cifar-jpeg",
            _cifar,
            _resnet56,
            ("--batch", "64"),
            (),
            ("--steps", "400", "--lr", "1e-4"),
            ("--recover", "6", "--lr", "1e-3"),
            ("--trust", "examples.resnet_cifar:resnet56"),
        ),
    )
}
