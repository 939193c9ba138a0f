"""A folder or zip of images -> Pixels, with labels only where they are asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from edgeprune import images
from edgeprune.data.pixels import Pixels, decode
from edgeprune.errors import DataError, nearest
from edgeprune.images import ImageRef, Preprocess

__all__ = ["Pixels", "labelled", "match", "unlabelled"]


def unlabelled(root: Path, pre: Preprocess, cache: Path | None = None) -> Pixels:
    """All images under `root`; `labels` is None by type, also where there are class folders.

    DataError when there is no image, or none can be read.
    """
    return decode(images.find(root), pre, cache)[0]


def labelled(
    root: Path,
    pre: Preprocess,
    class_names: Sequence[str] | None,
    cache: Path | None = None,
    *,
    dropped: Sequence[str] = (),
) -> Pixels:
    """All images under `root`, labels int64 (N,) indexing `class_names` (None: the folders' own, sorted).

    A folder matches a class by its name; failing that, with case, '_', '-' and blanks set aside. dropped: classes whose
    folders are left out. DataError: an unknown class, one that fits two names, or images in no class folder.
    """
    gone = {_plain(name) for name in dropped}
    found = [r for r in images.find(root) if r.label is None or _plain(r.label) not in gone]
    refs = _in_classes(root, found, class_names)
    names = tuple(class_names) if class_names is not None else images.classes(refs)
    index = {label: match(label, names, root) for label in images.classes(refs)}
    pixels, kept = decode(refs, pre, cache)
    pixels.labels = torch.tensor([index[str(r.label)] for r in kept], dtype=torch.int64)
    pixels.classes = names
    return pixels


def _in_classes(root: Path, refs: list[ImageRef], class_names: Sequence[str] | None) -> list[ImageRef]:
    known = set(images.classes(refs))
    if not known:
        # One folder alone is entered, so a set of a single class has none left: its own name may still say.
        entered = {p.parent.name for r in refs if (p := PurePosixPath(r.name)).parent.name}
        if class_names is not None and len(entered) == 1 and entered <= set(class_names):
            return [ImageRef(r.root, r.name, PurePosixPath(r.name).parent.name) for r in refs]
        raise DataError(
            f"{root}: no class folders; labelled images lie in one folder a class, as in {root}/cat/1.jpg"
        )
    # What is no image by its ending may lie beside the class folders; an image there would have no class.
    loose = [r for r in refs if r.label is None and images.looks_like_image(r.name)]
    if loose:
        raise DataError(
            f"{root}: {len(loose)} images beside the class folders, the first {loose[0].name}; "
            "move each into its class folder"
        )
    return [r for r in refs if r.label in known]


def match(label: str, names: Sequence[str], where: Path) -> int:
    """Index of the class a folder is named after; DataError with the near matches when none or two fit."""
    for key in (str, _plain):
        hits = [i for i, name in enumerate(names) if key(name) == key(label)]
        if len(hits) > 1:
            raise DataError(
                f"{where}: folder {label!r} fits the classes {hits[0]} and {hits[1]} of the model alike; "
                "give each class a name of its own with --classes FILE"
            )
        if hits:
            return hits[0]
    raise DataError(
        f"{where}: folder {label!r} is no class of the model, which has {len(names)}, its own or those of "
        f"--classes FILE; {nearest(label, names)}"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
