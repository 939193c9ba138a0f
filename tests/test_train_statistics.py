"""Frozen batch-norm statistics: blended by a share that is found without labels, and still while weights learn."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from edgeprune import inference, select, train, validate
from edgeprune.data.pixels import Pixels
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


def test_statistics_of_a_partial_target_are_taken_as_far_as_they_help() -> None:
    """They are those of other classes, too, for every objective that knows of it."""
    target, source = images(24, True, False), images(24, False, True)
    settled = network()
    validate.settle_batchnorm(settled, target)
    for objective in (MCC(TASK, MCC.Knobs(partial=True)), SHOT(TASK, SHOT.Knobs(partial=True))):
        net = network()
        train.fit(net, objective, target, source, settings(4, validations=2))
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
