"""Which of a network's classes does an unlabelled target hold, and a classifier without the rows of the others."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from edgeprune import inference, model
from edgeprune.data.pixels import Pixels, chosen
from edgeprune.errors import ModelError, UsageError
from edgeprune.model import Network

LEAST = 0.05  # of the commonest class's weight
SURE = 0.9  # probability of a class
ENOUGH, RARE = (
    10,
    0.01,
)  # so many such images say that it is there, if they are this share of the commonest class's


def present(logits: Tensor, least: float = LEAST) -> Tensor:
    """Bool (K,): the classes whose weight is at least `least` of the largest one, for target logits (M, K), or that
    surely holds more than `ENOUGH` images and `RARE` of the commonest class's.

    The weights are PADA's, mean_j softmax(z_j / T)_c (Cao et al., ECCV 2018, arXiv 1808.04205, eq. 4). That a class is
    absent only if it is so at T = 1 and at T = 0.1 is ours: the mean of hard and of soft answers both have to say so.
    That images are counted too, since a rare class may be there, follows SHOT, whose threshold for absence is ten;
    among ten thousand images so many are called anything, hence the share.
    """
    sure = (logits.double().softmax(1) >= SURE).sum(0)
    found = sure > max(ENOUGH, RARE * float(sure.max()))
    for temperature in (1.0, 0.1):
        weight = (logits.double() / temperature).softmax(1).mean(0)
        found |= weight >= least * weight.max()
    return found


def drop(network: Network, keep: Tensor) -> None:
    """Remove from the classifier, in place, the rows of classes that `keep` (bool (K,)) leaves out, and their names.

    ModelError, and nothing has changed, when the logits that stay would not be the same.
    """
    module, name = network.module, network.classifier
    rows = keep.nonzero().flatten()
    with inference.evaluating(module):
        expected = module(network.example())[:, rows]
        old = module.get_submodule(name)
        model.replace_classifier(module, name, len(rows))
        new = module.get_submodule(name)
        for leaf, tensor in new.named_parameters():
            tensor.copy_(old.get_parameter(leaf)[rows])
        try:
            found = module(network.example())
        except RuntimeError:  # heads of several widths do not add up
            found = None
        same = found is not None and found.shape == expected.shape
        if not same or not torch.allclose(found, expected, rtol=1e-5, atol=1e-5):
            model.replace_classifier(module, name, len(keep))
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, old)
            raise ModelError(
                f"{network.spec}: more than the layer {name} makes the logits, so classes cannot be dropped; "
                "leave --drop-absent-classes out"
            )
    network.classes = tuple(network.classes[i] for i in rows.tolist())


def check(network: Network) -> None:
    """UsageError when no class could be dropped from the network; a copy is tried."""
    keep = torch.arange(len(network.classes)) > 0
    try:
        if keep.any():
            drop(replace(network, module=copy.deepcopy(network.module)), keep)
    except ModelError as err:
        raise UsageError(f"--drop-absent-classes: {err}") from err


def relabelled(pixels: Pixels, classes: tuple[str, ...], rows: Tensor) -> Pixels:
    """The same images with labels that index the classes `rows` (L,) of the old; -1, never right, for a dropped one.

    A label that was -1 stays so.
    """
    assert pixels.labels is not None
    new = torch.full((len(pixels.classes),), -1, dtype=torch.int64)
    new[rows] = torch.arange(len(rows))
    labels = torch.where(pixels.labels < 0, -1, new[pixels.labels.clamp_min(0)])
    return replace(pixels, labels=labels, classes=classes)


def without(pixels: Pixels, classes: tuple[str, ...], rows: Tensor) -> Pixels:
    """The labelled images of the classes `rows` (L,) alone, with labels that index these; nothing is copied."""
    assert pixels.labels is not None
    return relabelled(chosen(pixels, torch.isin(pixels.labels, rows)), classes, rows)
