import copy
import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune import inference, train, validate
from edgeprune.data.pixels import Pixels
from edgeprune.errors import UsageError
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.objectives.adabn import AdaBN
from edgeprune.objectives.source import Source
from edgeprune.train import Settings
from edgeprune.waist import Task

TASK = Task(16, 3)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.body(x).mean((2, 3))))


def network() -> Network:
    torch.manual_seed(0)
    return Network(Tiny().eval(), "x", Preprocess((8, 8), (0.5,) * 3, (0.25,) * 3), ("0", "1", "2"), "head")


def images(count: int, shifted: bool, labelled: bool) -> Pixels:
    """Three classes told by their stripes: across, down and none; the target is dim, flat and reddish."""
    random = np.random.default_rng(7 + shifted)
    labels = random.permutation(np.arange(count) % 3)
    rows = random.normal(120, 25, (count, 8, 8, 3))
    rows[labels == 0, ::2] += 60
    rows[labels == 1, :, ::2] += 60
    if shifted:
        rows = 0.45 * rows + np.array([110, 10, 40])
    data = torch.from_numpy(rows.clip(0, 255).astype(np.uint8))
    return Pixels(data, torch.from_numpy(labels) if labelled else None, [str(i) for i in range(count)])


def settings(steps: int, lr: float) -> Settings:
    return Settings(steps, batch=16, lr=lr, device="cpu", flip=False, crop=(1.0, 1.0), validations=3)


@functools.cache
def cloud() -> dict[str, Tensor]:
    net = network()
    train.fit(net, Source(TASK), images(96, True, False), images(96, False, True), settings(60, 1e-2))
    return dict(net.module.state_dict())


def test_the_shifted_domain_is_pulled_in() -> None:
    net, target, labelled = network(), images(96, True, False), images(96, True, True)
    net.module.load_state_dict(cloud())
    before = inference.evaluate(net, labelled)
    assert before < 0.75
    train.fit(net, AdaBN(TASK), target, None, settings(1, 1.0))
    assert inference.evaluate(net, labelled) > before + 0.15


def norm(net: Network) -> nn.BatchNorm2d:
    found = net.module.get_submodule("body.1")
    assert isinstance(found, nn.BatchNorm2d)
    return found


@pytest.mark.parametrize(("blend", "share"), [(0.3, 0.3), (None, 24 / 40), (0.0, 24 / 40), (1.0, 1.0)])
def test_statistics_are_blended(blend: float | None, share: float) -> None:
    """mu = (1 - a) mu_s + a mu_t, read from the images in float64; left open, a = n / (n + 16)."""
    net, target = network(), images(24, True, False)
    norm(net).running_mean.copy_(torch.linspace(-1, 2, 16))  # type: ignore[union-attr]
    norm(net).running_var.copy_(torch.linspace(0.2, 3, 16))  # type: ignore[union-attr]
    own = [getattr(norm(net), name).double().numpy().copy() for name in ("running_mean", "running_var")]
    x = (target.take(torch.arange(24)).permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.25
    with torch.no_grad():
        seen = (
            copy.deepcopy(net.module.get_submodule("body.0")).double()(x).transpose(0, 1).flatten(1).numpy()
        )
    train.fit(net, AdaBN(TASK, AdaBN.Knobs(blend)), target, None, settings(1, 1.0))
    theirs = seen.mean(1), seen.var(1, ddof=1)
    for name, mine, target_s in zip(("running_mean", "running_var"), own, theirs, strict=True):
        expected = (1 - share) * mine + share * target_s
        np.testing.assert_allclose(getattr(norm(net), name).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_batchnorm_is_told() -> None:
    net = network()
    body = net.module.get_submodule("body")
    body.register_module("1", nn.GroupNorm(2, 16))
    body.register_module("4", nn.BatchNorm2d(16, track_running_stats=False))
    with pytest.raises(
        UsageError, match=r"x has no batch-norm layer with running .* take another --objective"
    ):
        train.fit(net, AdaBN(TASK), images(24, True, False), None, settings(1, 1.0))


def test_many_images_need_no_statistics_of_before() -> None:
    assert [validate.share_of(n) for n in (1, 16, 240, 256, 5000)] == [1 / 17, 0.5, 240 / 256, 1.0, 1.0]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(UsageError, match=rf"--set blend={share:g}: expected a share in 0\.\.1"):
        AdaBN.Knobs(share)


def test_statistics_change_and_nothing_else() -> None:
    net, other, target = network(), network(), images(48, True, False)
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    fit = train.fit(net, AdaBN(TASK, AdaBN.Knobs(blend=1.0)), target, None, settings(10, 1.0))
    inference.reestimate_batchnorm(other.module, target, other.preprocess)
    for name, value in net.module.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, other.module.state_dict()[name])
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name])
    assert [c["step"] for c in fit.curves] == [0]
    assert fit.chosen_step == 0
