from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune import inference
from edgeprune.data.pixels import Pixels
from edgeprune.errors import DataError
from edgeprune.images import Preprocess
from edgeprune.model import Network

PRE = Preprocess((6, 6), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


class Tiny(nn.Module):
    def __init__(self, convolutional_head: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 5, 3, 2)
        self.after = nn.BatchNorm2d(5, momentum=0.3)
        self.head: nn.Module = nn.Conv2d(5, 4, 1) if convolutional_head else nn.Linear(5, 4)
        self.convolutional_head = convolutional_head

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.conv(self.norm(x))).relu()
        if self.convolutional_head:
            return torch.as_tensor(self.head(x).mean((2, 3)))
        return torch.as_tensor(self.head(x.mean((2, 3))))


def network(**kwargs: Any) -> Network:
    torch.manual_seed(0)
    return Network(Tiny(**kwargs).eval(), "x", PRE, ("a", "b", "c", "d"), "head")


def pixels(count: int, labels: bool = True) -> Pixels:
    """Every image has a brightness of its own, and they are sorted by it: batches in order would differ."""
    random = np.random.default_rng(0)
    rows = (
        random.integers(0, 90, (count, 6, 6, 3)) + np.linspace(0, 160, count).astype(int)[:, None, None, None]
    )
    data = torch.from_numpy(rows.astype(np.uint8))
    return Pixels(data, torch.arange(count) % 4 if labels else None, [str(i) for i in range(count)])


def normalised(p: Pixels) -> np.ndarray[Any, np.dtype[np.float64]]:
    rows = p.take(torch.arange(len(p))).numpy().astype(np.float64) / 255
    return np.asarray((rows - np.array(PRE.mean)) / np.array(PRE.std)).reshape(-1, 3)


@pytest.mark.parametrize(("count", "batch"), [(24, 8), (24, 24), (23, 5), (24, 100)])
@pytest.mark.parametrize("blend", [1.0, 0.25, 0.0])
def test_batchnorm_is_that_of_the_whole_set(count: int, batch: int, blend: float) -> None:
    net, p = network(), pixels(count, labels=False)
    norm = net.module.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.tensor([1.0, -1.0, 0.5])
    norm.running_var = torch.tensor([2.0, 3.0, 0.5])
    assert inference.reestimate_batchnorm(net.module, p, PRE, blend=blend, batch=batch) == 2
    x = normalised(p)
    mean, variance = x.mean(0), x.var(0, ddof=1)
    before = np.array([1.0, -1.0, 0.5]), np.array([2.0, 3.0, 0.5])
    np.testing.assert_allclose(
        norm.running_mean, blend * mean + (1 - blend) * before[0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(norm.running_var, blend * variance + (1 - blend) * before[1], rtol=1e-5)


def test_batchnorm_of_an_even_choice_of_images() -> None:
    net, p = network(), pixels(31, labels=False)
    inference.reestimate_batchnorm(net.module, p, PRE, images=11, batch=4)
    chosen = p.subset([3 * i for i in range(11)])
    np.testing.assert_allclose(
        net.module.state_dict()["norm.running_mean"], normalised(chosen).mean(0), rtol=1e-5
    )


def test_batchnorm_in_batches_is_near_one_batch_also_further_down() -> None:
    one, many = network(), network()
    inference.reestimate_batchnorm(one.module, pixels(64), PRE, batch=64)
    inference.reestimate_batchnorm(many.module, pixels(64), PRE, batch=16)
    for name in ("after.running_mean", "after.running_var"):
        np.testing.assert_allclose(
            one.module.state_dict()[name], many.module.state_dict()[name], rtol=0.1, atol=0.02
        )


def test_batchnorm_leaves_everything_else_as_it_was() -> None:
    net = network()
    net.module.train()
    net.module.get_submodule("after").eval()
    modes = {name: m.training for name, m in net.module.named_modules()}
    parameters = {name: p.clone() for name, p in net.module.named_parameters()}
    inference.reestimate_batchnorm(net.module, pixels(12), PRE)
    assert {name: m.training for name, m in net.module.named_modules()} == modes
    assert all(torch.equal(p, parameters[name]) for name, p in net.module.named_parameters())
    norms = [m for m in net.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.momentum for m in norms] == [0.1, 0.3]
    assert all(m.track_running_stats and not m._forward_pre_hooks for m in norms)
    assert inference.reestimate_batchnorm(nn.Linear(2, 2), pixels(12), PRE) == 0


def test_batchnorm_survives_a_network_that_fails() -> None:
    net = network()
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    net.module.get_submodule("head").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        inference.reestimate_batchnorm(net.module, pixels(12), PRE)
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    assert not any(m.training for m in net.module.modules())


def test_tracking() -> None:
    net = network()
    net.module.train()
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    x = torch.randn(4, 3, 6, 6)
    with inference.tracking(net.module, False):
        quiet = net.module(x)
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    with inference.tracking(net.module, True):
        loud = net.module(x)
    assert torch.equal(quiet, loud)
    assert not torch.equal(net.module.state_dict()["norm.running_mean"], before["norm.running_mean"])


def test_predict_gives_the_input_of_the_classifier() -> None:
    net = network()
    net.module.train()
    features, logits = inference.predict(net, pixels(11), batch=4)
    assert net.module.training
    assert features.shape == (11, 5)
    torch.testing.assert_close(net.module.get_submodule("head")(features), logits)
    again = inference.predict(net, pixels(11), batch=11)[1]
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(inference.logits_of(net.module, pixels(11), PRE), logits)
    assert not logits.requires_grad


def test_predict_averages_the_map_before_a_convolution() -> None:
    net = network(convolutional_head=True)
    features, logits = inference.predict(net, pixels(5))
    torch.testing.assert_close(
        net.module.get_submodule("head")(features[:, :, None, None]).flatten(1), logits
    )


def test_evaluate_counts() -> None:
    net, p = network(), pixels(13)
    best = inference.predict(net, p)[1].argmax(1)
    p.labels = best.clone()
    assert inference.evaluate(net, p) == 1
    p.labels[:3] = (best[:3] + 1) % 4
    assert inference.evaluate(net, p) == pytest.approx(10 / 13)
    with pytest.raises(DataError, match="accuracy needs labelled images; expected one folder a class"):
        inference.evaluate(net, pixels(3, labels=False))


def test_taps_come_off() -> None:
    net = network()
    x = torch.randn(2, 3, 6, 6)
    with inference.Taps(net.module, "head", ("conv", "after")) as taps:
        net.module(x)
    torch.testing.assert_close(taps.layers["conv"], net.module.get_submodule("norm")(x))
    torch.testing.assert_close(taps.layers["after"], net.module.get_submodule("conv")(taps.layers["conv"]))
    kept = taps.features
    net.module(x + 1)
    assert taps.features is kept


def test_a_compiled_network_is_asked_as_it_is_written() -> None:
    """Taps come and go, which compiled code need not see; afterwards it is compiled again."""
    made = network()

    def compiled(*args: Any) -> Tensor:
        raise AssertionError

    vars(made.module)["_compiled_call_impl"] = compiled
    assert inference.predict(made, pixels(4))[1].shape == (4, 4)
    assert vars(made.module)["_compiled_call_impl"] is compiled


def test_a_single_value_per_channel_is_said() -> None:
    norm = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    with pytest.raises(
        DataError, match="a batch of one image is too few: batch-norm has one value per channel"
    ):
        inference.reestimate_batchnorm(norm, pixels(1), PRE)


class Viewed(nn.Module):
    """Lays out what it computes by `view`, as many tutorials do: channels-last maps have no such view."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4 * 3 * 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        out: Tensor = self.head(x.view(x.size(0), -1))
        return out


def test_images_lie_as_the_network_takes_them() -> None:
    images = torch.randn(4, 3, 8, 8)
    plain, viewed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), Viewed()
    seen: list[Tensor] = []
    plain.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    last, rows = inference.shown(plain, images), inference.shown(viewed, images)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert rows.is_contiguous()
    assert torch.equal(last, images)
    inference.shown(plain, images)
    assert not seen, "what watches a network sees no image twice"
    assert plain[1].num_batches_tracked == 0, "and nothing is learned from them"
    assert plain.training
    plain(last)
    assert len(seen) == 1, "it watches on"
    viewed(rows)
    assert (
        inference.memory_format(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), images)
        == torch.contiguous_format
    )
