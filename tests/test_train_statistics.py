"""Frozen batch-norm statistics: blended by a share that is found without labels, and still while weights learn."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune import inference, select, train, validate
from edgeprune.data.pixels import Pixels
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.objectives.auto import Auto
from edgeprune.objectives.mcc import MCC
from edgeprune.objectives.shot import SHOT
from tests.test_train import TASK, images, network, settings

MILD = Auto.Knobs(view="weak", statistics="frozen", near=3)


def norm(net: Network) -> nn.BatchNorm2d:
    found = net.module.get_submodule("body.1")
    assert isinstance(found, nn.BatchNorm2d)
    return found


def information(net: Network, pixels: Pixels) -> float:
    return select.validators(*inference.predict(net, pixels))["information"]


def blended(share: float) -> Network:
    net, other = network(), network()
    inference.reestimate_batchnorm(other.module, images(24, True, False), net.preprocess)
    for name in ("running_mean", "running_var"):
        getattr(norm(net), name).lerp_(getattr(norm(other), name), share)
    return net


def test_the_share_is_that_of_the_most_information() -> None:
    net, target = network(), images(24, True, False)
    share = validate.settle_batchnorm(net, target)
    scores = {s: information(blended(s), target) for s in validate.SHARES}
    assert share == max(scores, key=scores.__getitem__)
    torch.testing.assert_close(norm(net).running_mean, norm(blended(share)).running_mean)
    torch.testing.assert_close(norm(net).running_var, norm(blended(share)).running_var)


def test_weights_learn_and_statistics_stay() -> None:
    net, target = network(), images(24, True, False)
    settled = network()
    validate.settle_batchnorm(settled, target)
    train.fit(net, Auto(TASK, MILD), target, None, settings(6, validations=2))
    torch.testing.assert_close(norm(net).running_mean, norm(settled).running_mean)
    torch.testing.assert_close(norm(net).running_var, norm(settled).running_var)
    assert not torch.equal(norm(net).weight, norm(settled).weight)
    assert not norm(net).training


class Bright(nn.Module):
    """Six classes by how bright an image is, told by batch-norm statistics of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(1, 6)
        with torch.no_grad():
            centres = (torch.arange(6) - 2.5) / 1.7078  # of even classes, at unit variance
            self.head.weight.copy_(20 * centres[:, None])
            self.head.bias.copy_(-10 * centres**2)
        self.norm.get_buffer("running_mean").fill_(0.0)
        self.norm.get_buffer("running_var").fill_((40 / 127.5 * 1.7078) ** 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.norm(x.mean(1, keepdim=True)).mean((2, 3)))
        return found


def bright(classes: tuple[int, ...]) -> tuple[Network, Pixels]:
    """The network, and 12 images of each of the classes."""
    rows = torch.tensor([22 + 40 * c + i for c in classes for i in range(12)], dtype=torch.uint8)
    shown = rows[:, None, None, None].expand(-1, 4, 4, 3).contiguous()
    pre = Preprocess((4, 4), (0.5,) * 3, (0.5,) * 3)
    target = Pixels(shown, None, [str(i) for i in range(len(rows))])
    return Network(Bright().eval(), "bright", pre, tuple("abcdef"), "head"), target


@pytest.mark.parametrize("classes", [(0, 1), (0, 1, 2), (4, 5), (1, 2, 3, 4)])
def test_a_partial_target_does_not_change_what_is_right(classes: tuple[int, ...]) -> None:
    """Its statistics are those of other classes, and spread the answers over all six, which looks informed."""
    net, target = bright(classes)
    truth = torch.tensor([c for c in classes for _ in range(12)])
    assert torch.equal(inference.predict(net, target)[1].argmax(1), truth)
    assert validate.settle_batchnorm(net, target, partial=True) == 0.0
    assert torch.equal(inference.predict(net, target)[1].argmax(1), truth)
    whole, _ = bright(classes)
    assert validate.settle_batchnorm(whole, target) > 0
    assert not torch.equal(inference.predict(whole, target)[1].argmax(1), truth)


def test_own_statistics_that_say_one_class_give_way() -> None:
    net, target = bright((0, 1, 2, 3))
    net.module.get_buffer("norm.running_mean").fill_(-9.0)
    assert len(set(inference.predict(net, target)[1].argmax(1).tolist())) == 1
    assert validate.settle_batchnorm(net, target, partial=True) > 0
    assert len(set(inference.predict(net, target)[1].argmax(1).tolist())) > 1


@pytest.mark.parametrize("kind", [MCC, SHOT])
def test_statistics_of_a_partial_target_stay_while_weights_learn(kind: Any) -> None:
    target, source = images(24, True, False), images(24, False, True)
    settled, net = network(), network()
    validate.settle_batchnorm(settled, target, partial=True)
    train.fit(net, kind(TASK, kind.Knobs(partial=True)), target, source, settings(4, validations=2))
    torch.testing.assert_close(norm(net).running_mean, norm(settled).running_mean)
    assert not torch.equal(norm(net).weight, norm(settled).weight)


def test_without_batch_norm_there_is_nothing_to_settle() -> None:
    plain = replace(network(), module=nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3)))
    assert validate.settle_batchnorm(plain, images(4, True, False)) == 1.0


@pytest.mark.parametrize("frozen", [True, False])
def test_training_mode(frozen: bool) -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())
    inference.training(module.eval(), frozen=frozen)
    assert (module[0].training, module[1].training) == (not frozen, True)
