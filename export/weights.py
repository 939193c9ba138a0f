"""Proof that an exported graph holds the slim network's weights: every shape is compared.

Exporters rename, transpose and fold; they never change a width. So each initialiser that bears a
parameter's name has its shape, and each convolution and linear layer that ran finds a weight of its own
shape among those multiplied.
"""

from __future__ import annotations

from collections import Counter

import onnx
import torch
from torch import Tensor, nn

from edgeprune.count import Count
from edgeprune.errors import ParityFailed

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def check(module: nn.Module, example: Tensor, model: onnx.ModelProto, counted: Count) -> None:
    """Raise ParityFailed with the layer and both shapes at the first weight that is not the module's."""
    own = {name: tuple(t.shape) for name, t in module.state_dict(keep_vars=True).items()}
    for tensor in model.graph.initializer:
        wanted, found = own.get(tensor.name), tuple(tensor.dims)
        if wanted is not None and found != wanted and found != wanted[::-1]:
            raise ParityFailed(f"{tensor.name}: exported as {list(found)}, the network has {list(wanted)}")
    shapes = Counter(c.weight_shape for c in counted.layers if c.weight_shape is not None)
    for name, shape in _ran(module, example):
        for alike in dict.fromkeys((shape, shape[::-1] if len(shape) == 2 else shape)):
            if shapes[alike]:
                shapes[alike] -= 1
                break
        else:
            raise ParityFailed(f"{name}: no exported layer holds a weight of its shape {list(shape)}")


def _ran(module: nn.Module, example: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Name and weight shape of each convolution and linear layer, once for each time it runs on `example`."""
    seen: list[tuple[str, tuple[int, ...]]] = []
    hooks = [
        layer.register_forward_hook(
            lambda m, i, o, name=name, shape=tuple(layer.weight.shape): seen.append((name, shape))
        )
        for name, layer in module.named_modules()
        if isinstance(layer, _LAYERS)
    ]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
