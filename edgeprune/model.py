"""A word of the user -> a network that can be trained, cut and exported, with the preprocessing its images need.

Whatever builds a network by name must build the same skeleton again when a checkpoint is opened: `build` is that one
place, and it takes only what the checkpoint's document keeps (the spec and its keyword arguments).
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import MissingHere, ModelError, nearest
from edgeprune.images import Preprocess

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class Network:
    """A network and all that goes with it.

    module: maps (N, 3, H, W) float32 to logits (N, K). spec and build: what `build` needs to make its skeleton.
    classifier: dotted name of the layer that makes the logits; its input is the feature vector.
    classes: K names. history: one entry for each command that led here (JSON values).
    """

    module: nn.Module
    spec: str
    preprocess: Preprocess
    classes: tuple[str, ...]
    classifier: str
    build: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Classes that the network had and that were taken out of it (`--drop-absent-classes`)."""
        drops = [entry for entry in self.history if entry.get("command") == "drop-absent-classes"]
        had = {str(name) for entry in drops for name in entry["of"]}
        return tuple(sorted(had - set(self.classes)))

    def example(self, batch: int = 2) -> Tensor:
        """Images of the right shape, (batch, 3, H, W) float32, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, *self.preprocess.size, generator=generator)


def is_factory(spec: str) -> bool:
    """Whether a spec names the user's own code ("package.module:factory")."""
    scheme, colon, _ = spec.partition(":")
    return bool(colon) and scheme not in ("torchvision", "timm")


def build(spec: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Make the dense network of a spec with random weights, on the CPU.

    Not on meta: several networks keep tables in buffers that are computed in the constructor and stored nowhere.
    ModelError names the nearest when the name is unknown.
    """
    scheme, colon, name = spec.partition(":")
    if not colon:
        raise ModelError(
            f"{spec!r} is no model: expected torchvision:NAME, timm:NAME, package.module:factory, a run or a checkpoint"
        )
    if scheme == "torchvision":
        return _torchvision(name, weights=None, **kwargs)
    if scheme == "timm":
        return _timm(name, pretrained=False, **kwargs)
    made = _factory(spec)(**kwargs)
    if not isinstance(made, nn.Module):
        raise ModelError(f"{spec}: the factory returned {type(made).__name__}; expected a torch.nn.Module")
    return made


def published(spec: str, kwargs: Mapping[str, Any], *, offline: bool) -> nn.Module:
    """Make the network with the weights that its library publishes; a factory brings its own.

    MissingHere when they cannot be fetched, or are not in the cache while `offline` forbids fetching.
    """
    scheme, _, name = spec.partition(":")
    if is_factory(spec):
        return build(spec, kwargs)
    try:
        if scheme == "timm":
            return _timm(name, pretrained=True, **kwargs)
        if offline:
            _must_be_cached(name)
        return _torchvision(name, weights="DEFAULT", **kwargs)
    except ModelError:
        raise
    except (
        Exception
    ) as err:  # each hub client has its own errors for a missing network; the remedy is the same
        cause = str(err).strip().splitlines()[0][:120] if str(err).strip() else type(err).__name__
        why = "are not in the cache (--offline)" if offline else "cannot be fetched"
        raise MissingHere(
            f"{spec}: its published weights {why}: {cause}; give --weights FILE, or --weights none for random ones"
        ) from err


def _must_be_cached(name: str) -> None:
    import torchvision

    url = torchvision.models.get_model_weights(name).DEFAULT.url
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if not os.path.isfile(file):
        raise FileNotFoundError(f"no {os.path.basename(url)}")


def _torchvision(name: str, **kwargs: Any) -> nn.Module:
    import torchvision

    if name not in torchvision.models.list_models():
        raise ModelError(
            f"torchvision has no model {name!r}: {nearest(name, torchvision.models.list_models())}"
        )
    if "weights_backbone" in inspect.signature(torchvision.models.get_model_builder(name)).parameters:
        kwargs["weights_backbone"] = None  # else it fetches them, for a network that is given others
    made: nn.Module = torchvision.models.get_model(name, **kwargs)
    return made


def _timm(name: str, **kwargs: Any) -> nn.Module:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise ModelError(f"timm has no model {name!r}: {nearest(name, timm.list_models())}")
    made: nn.Module = timm.create_model(name, **kwargs)
    return made


def _factory(spec: str) -> Callable[..., Any]:
    module, _, attribute = spec.partition(":")
    if os.getcwd() not in sys.path:  # the console script does not have the user's folder on its path
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as err:
        raise ModelError(f"{spec}: cannot import {module!r} ({err}); is its folder the current one?") from err
    except AttributeError:
        names = [n for n in dir(sys.modules[module]) if not n.startswith("_")]
        raise ModelError(f"{spec}: {module} has no {attribute!r}: {nearest(attribute, names)}") from None
    if not callable(found):
        raise ModelError(
            f"{spec}: {attribute} is not callable; expected a function that returns a torch.nn.Module"
        )
    return found  # type: ignore[no-any-return]


def keyword_arguments(spec: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """What the constructor must be told so that images of `size` fit: position tables of transformers, mostly."""
    scheme, _, name = spec.partition(":")
    if size is None:
        return {}
    if scheme == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        if config and config.fixed_input_size and tuple(config.input_size[1:]) != size:
            return {"img_size": size if size[0] != size[1] else size[0]}
    if scheme == "torchvision" and name.startswith("vit_"):
        return {"image_size": size[0]}
    if is_factory(spec) and "image_size" in inspect.signature(_factory(spec)).parameters:
        return {"image_size": size[0]}
    return {}


def default_preprocess(spec: str, module: nn.Module) -> Preprocess | None:
    """The preprocessing a network was published with; None when nobody says."""
    scheme, _, name = spec.partition(":")
    if scheme == "torchvision":
        import torchvision

        transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        if not hasattr(transform, "crop_size"):
            return None  # of a detector or a segmentation network, whose images come in many sizes
        crop, resize = transform.crop_size[0], transform.resize_size[0]
        return Preprocess(
            (crop, crop),
            tuple(transform.mean),
            tuple(transform.std),
            transform.interpolation.value,
            crop / resize,
        )
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(config, Mapping) or "input_size" not in config:
        return None
    height, width = config["input_size"][-2:]
    return Preprocess(
        (height, width),
        tuple(config.get("mean", IMAGENET_MEAN)),
        tuple(config.get("std", IMAGENET_STD)),
        str(config.get("interpolation", "bilinear")),
        float(config.get("crop_pct", 1.0)),
    )


def published_classes(spec: str, count: int) -> tuple[str, ...]:
    """The names that go with the published weights; "0", "1", ... when there are none."""
    scheme, _, name = spec.partition(":")
    if scheme == "torchvision":
        import torchvision

        names = tuple(torchvision.models.get_model_weights(name).DEFAULT.meta.get("categories", ()))
        if len(names) == count:
            return names
    if scheme == "timm" and count == 1000:
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo()
        return tuple(info.index_to_description(i, detailed=False) for i in range(count))
    return tuple(str(i) for i in range(count))


def find_classifier(spec: str, module: nn.Module, example: Tensor) -> tuple[str, int]:
    """Dotted name of the layer whose output is the network's output, and the number of classes K.

    The layer is found by running the network on `example` (N, 3, H, W): the last Linear or convolution whose output
    is the logits, or failing that has K channels. ModelError when the output is not (N, K).
    """
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda m, i, out, name=name: seen.append((name, out)))
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    training = module.training
    try:
        with torch.no_grad():
            logits = module.eval()(example)
    except Exception as err:
        shape = tuple(example.shape)
        raise ModelError(
            f"{spec}: the network does not take images of shape {shape}: {err}; is --size right? "
            "Images have three channels here"
        ) from err
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{spec}: the output is {what}; expected logits (images, classes). Detectors and segmentation networks "
            "are cut from Python, see docs/prune.md"
        )
    for name, output in reversed(seen):
        if output.numel() == logits.numel() and torch.equal(output.flatten(1), logits):
            return name, int(logits.shape[1])
    for name, output in reversed(seen):  # heads that are averaged, or scaled after the layer
        if output.shape[-1] == logits.shape[1] or output.shape[1] == logits.shape[1]:
            return name, int(logits.shape[1])
    raise ModelError(
        f"{spec}: no Linear or convolution makes the {logits.shape[1]} logits; expected a classifier at the end"
    )


def replace_classifier(module: nn.Module, name: str, classes: int) -> None:
    """Put a new, randomly initialised classifier of the same kind and input width in place of layer `name`."""
    old = module.get_submodule(name)
    bias = getattr(old, "bias", None) is not None
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes, bias)
    elif isinstance(old, nn.Conv2d):
        how = old.kernel_size, old.stride, old.padding, old.dilation
        new = nn.Conv2d(old.in_channels, classes, *how, bias=bias)  # type: ignore[arg-type]
    else:
        raise ModelError(f"{name}: a {type(old).__name__} as classifier; expected Linear or Conv2d")
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new.to(old.weight.device, old.weight.dtype))
    if isinstance(getattr(module, "num_classes", None), int):
        setattr(module, "num_classes", classes)  # noqa: B010 (a plain attribute, which nn.Module's type hides)
