"""Whatever the user calls a model -> a Network ready to work with: a spec with weights, a run folder, a checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from edgeprune import checkpoint, header, model, weights
from edgeprune.errors import BrokenModel, DataError, ModelError, UsageError, WeightsError
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.options import ModelOptions

_SPEC = re.compile(r"^[\w.]+:[\w.\-/]+$")


def open_network(
    word: str, options: ModelOptions, source_classes: Sequence[str] = ()
) -> tuple[Network, bool]:
    """The network of `word`, and whether its classifier is new and untrained.

    `source_classes` names the class folders of the labelled source, which give the names when `--classes` is a number.
    ModelError, WeightsError, CheckpointError or DataError say what does not fit.
    """
    if _SPEC.match(word):
        network, pairs = _from_spec(word, options)
        if pairs:
            network.history.append({"command": "map-by-order", "pairs": [list(p) for p in pairs]})
    elif Path(word).exists():
        network = _from_file(Path(word), options)
    else:
        raise ModelError(
            f"{word!r} is neither a model nor a file that exists: expected torchvision:NAME, timm:NAME, "
            "package.module:factory, a run folder or a checkpoint"
        )
    _require_numbers(network, word)
    network.preprocess = _preprocess(network.preprocess, options)
    fresh = _set_classes(network, options.classes, tuple(source_classes))
    network.module.eval()
    return network, fresh


def _require_numbers(network: Network, word: str) -> None:
    for name, value in network.module.state_dict().items():
        if value.is_floating_point() and (bad := int((~torch.isfinite(value)).sum())) and value.numel() > 1:
            raise BrokenModel(
                f"{word}: weight {name} holds NaN or infinity in {bad} of {value.numel()} numbers; "
                "take an earlier checkpoint"
            )


def before_fine_tuning(network: Network, path: Path, options: ModelOptions) -> Network:
    """The architecture of `network`, never pruned, with the weights at `path`: a file of weights, a run, a checkpoint.

    Images are prepared as for `network`. WeightsError or CheckpointError say what does not fit.
    """
    if path.is_dir() or (path.is_file() and header.is_checkpoint(path)):
        return replace(checkpoint.read(path, options.trust), preprocess=network.preprocess)
    module = model.build(network.spec, network.build)
    _fit(module, path, options.map_by_order)
    return replace(network, module=module.eval(), history=[])


def _from_file(path: Path, options: ModelOptions) -> Network:
    if options.weights:
        raise UsageError(f"{path} has its own weights; --weights goes with a model's name")
    return checkpoint.read(path, options.trust)


def _from_spec(spec: str, options: ModelOptions) -> tuple[Network, list[tuple[str, str]]]:
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # its client reads it when it is imported, with timm
    size = (options.size, options.size) if options.size else None
    kwargs = model.keyword_arguments(spec, size)
    pairs: list[tuple[str, str]] = []
    if options.weights is None:
        module = model.published(spec, kwargs, offline=options.offline)
    else:
        module = model.build(spec, kwargs)
        if options.weights != "none":
            pairs = _fit(module, Path(options.weights), options.map_by_order)
    pre = model.default_preprocess(spec, module)
    if pre is None and size is None:
        raise ModelError(
            f"{spec}: nothing says what size its images are; give --size (and --mean, --std if not ImageNet's)"
        )
    pre = pre or Preprocess(size or (0, 0), model.IMAGENET_MEAN, model.IMAGENET_STD)
    pre = replace(pre, size=size or pre.size)
    name, count = model.find_classifier(spec, module, torch.zeros(2, 3, *pre.size).normal_())
    classes = model.published_classes(spec, count)
    return Network(module, spec, pre, classes, name, kwargs), pairs


def _fit(module: torch.nn.Module, path: Path, by_order: bool) -> list[tuple[str, str]]:
    if path.suffix == ".safetensors" and path.is_file() and header.is_checkpoint(path):
        raise WeightsError(
            f"--weights {path}: this is a checkpoint of edgeprune; give it as the model instead"
        )
    found = weights.read(path)
    if by_order:
        return weights.fit_by_order(module, found, str(path))
    weights.fit_by_name(module, found, str(path))
    return []


def _numbers(text: str, flag: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise UsageError(f"{flag} {text!r}: expected one or three numbers, such as 0.5,0.5,0.5")
    return numbers * 3 if len(numbers) == 1 else numbers


def _preprocess(pre: Preprocess, options: ModelOptions) -> Preprocess:
    if options.size:
        pre = replace(pre, size=(options.size, options.size))
    if options.mean:
        pre = replace(pre, mean=_numbers(options.mean, "--mean"))
    if options.std:
        pre = replace(pre, std=_numbers(options.std, "--std"))
    if options.interpolation:
        pre = replace(pre, interpolation=options.interpolation)
    return pre


def _wanted(text: str | None, source_classes: tuple[str, ...]) -> tuple[int, tuple[str, ...]] | None:
    """How many classes the user wants, and their names when known; None when nothing was said."""
    if text is None:
        return None
    if not text.isdecimal():
        path = Path(text)
        if not path.is_file():
            raise DataError(f"--classes {text}: neither a number nor a file with one name a line")
        names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
        if len(set(names)) != len(names) or not names:
            raise DataError(f"--classes {path}: expected distinct names, one a line; found {len(names)}")
        return len(names), names
    count = int(text)
    if count < 2:
        raise UsageError(f"--classes {count}: expected at least 2")
    if source_classes and len(source_classes) != count:
        raise DataError(
            f"--classes {count}, but the source has {len(source_classes)}: {', '.join(source_classes[:8])}"
        )
    return count, source_classes


def _set_classes(network: Network, text: str | None, source_classes: tuple[str, ...]) -> bool:
    wanted = _wanted(text, source_classes)
    if wanted is None:
        return False
    count, names = wanted
    fresh = count != len(network.classes)
    if fresh:
        model.replace_classifier(network.module, network.classifier, count)
    numbers = tuple(str(i) for i in range(count))
    named = text is not None and text.isdecimal() and network.classes != numbers
    if fresh or (names and not named):  # a number gives no names to a network that has its own
        network.classes = names or numbers
    return fresh
