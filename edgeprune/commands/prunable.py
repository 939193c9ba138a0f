"""`edgeprune inspect --prunable`: every coupling of a network, tried, and why the rest must stay. Needs torch.

Beside classifiers it takes torchvision's detectors and segmentation networks, whose outputs are lists and dicts; they
are pruned through the Python API, with example inputs: `graph.find`, `budget.plan`, `surgery.apply`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune import model
from edgeprune.device_options import InspectOptions
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions
from edgeprune.prune import graph

SIZE = 320  # of images for networks that say nothing of it; what is coupled does not depend on it


def rows(options: InspectOptions) -> tuple[dict[str, Any], tuple[Mapping[str, Any], ...]]:
    """Facts of the network, and one row a coupling: layer, width, number of layers, prunable, why not."""
    spec, module, example = _open(options)
    couplings = graph.find(module, example)
    found = tuple(
        {
            "layer": c.root,
            "width": c.width,
            "layers": len(c.members),
            "prunable": c.frozen is None,
            "why": c.frozen,
        }
        for c in couplings.all
    )
    frozen = sum(c.frozen is not None for c in couplings.all)
    return {"model": spec, "couplings_found": len(couplings.all), "frozen": frozen}, found


def _open(options: InspectOptions) -> tuple[str, nn.Module, Any]:
    """Random weights will do: what is coupled with what does not depend on them."""
    word = options.file
    size = options.size or SIZE
    found = _detector_or_segmenter(word, size) or (_foreign(word, size) if model.is_factory(word) else None)
    if found is not None:
        return word, *found
    words = ModelOptions(
        weights=None if Path(word).exists() else "none", trust=options.trust, size=options.size
    )
    network, _ = open_network(word, words)
    return network.spec, network.module, network.example()


def _images(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _detector_or_segmenter(word: str, size: int) -> tuple[nn.Module, Any] | None:
    """A network of torchvision that is no classifier, and what its forward takes; None for any other word."""
    scheme, _, name = word.partition(":")
    if scheme != "torchvision":
        return None
    from torchvision import models

    bare = {"weights": None, "weights_backbone": None}
    if name in models.list_models(module=models.segmentation):
        return models.get_model(name, **bare).eval(), _images(size)
    if name not in models.list_models(module=models.detection):
        return None
    sized = {} if name.startswith("ssd") else {"min_size": size, "max_size": size}
    return models.get_model(name, **bare, **sized).eval(), (list(_images(size)),)


def _foreign(word: str, size: int) -> tuple[nn.Module, Any] | None:
    """A network of the user's own that puts out no logits, and what its forward takes: images, or a list of them."""
    module = model.build(word, {}).eval()
    for example in (_images(size), (list(_images(size)),)):
        try:
            with torch.no_grad():
                out = module(*example) if isinstance(example, tuple) else module(example)
        except Exception:  # whatever a foreign forward raises on what it does not take
            continue
        return None if isinstance(out, torch.Tensor) and out.ndim == 2 else (module, example)
    return None
