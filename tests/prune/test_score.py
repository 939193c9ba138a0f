"""Scores against a plain reading of their formulas, on networks whose useless channels are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeprune.errors import DataError, ModelError
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import graph, surgery
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.ladder import Rules, ladder
from edgeprune.prune.scores import measured
from edgeprune.prune.scores.activation import Activation
from edgeprune.prune.scores.bn_scale import BNScale
from edgeprune.prune.scores.fpgm import FPGM
from edgeprune.prune.scores.gates import gated
from edgeprune.prune.scores.lamp import LAMP, lamp
from edgeprune.prune.scores.magnitude import Magnitude
from edgeprune.prune.scores.measured import Measured
from edgeprune.prune.scores.random import Random
from edgeprune.prune.scores.taylor import Taylor, TaylorLabels, slopes
from edgeprune.prune.sensitivity import Sensitivity, sensitivity

SILENT = (1, 4)


class Small(nn.Module):
    """A residual stream and an inner layer; channels SILENT of the inner layer are read with weight 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.outer.weight[:, list(SILENT)] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.fixture
def small() -> tuple[nn.Module, Couplings, Tensor, Tensor]:
    net = Small().double().eval()
    images, labels = torch.randn(6, 3, 7, 7).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    return net, graph.find(net, images[:2], verify=False), images, labels


ALL = ["magnitude", "lamp", "fpgm", "random", "bn", "taylor", "labels", "activation", "measured"]


def make(name: str, images: Tensor, labels: Tensor):  # type: ignore[no-untyped-def]
    return {
        "magnitude": Magnitude(),
        "lamp": LAMP(),
        "fpgm": FPGM(),
        "random": Random(),
        "bn": BNScale(),
        "taylor": Taylor([images]),
        "labels": TaylorLabels([(images, labels)]),
        "activation": Activation([images]),
        "measured": Measured([images]),
    }[name]


@pytest.mark.parametrize("name", ALL)
def test_one_finite_number_a_channel_and_nothing_changes(name: str, small) -> None:  # type: ignore[no-untyped-def]
    net, couplings, images, labels = small
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    scores = make(name, images, labels)(net, couplings)
    assert {r: tuple(s.shape) for r, s in scores.items()} == {c.root: (c.width,) for c in couplings}
    assert all(bool(s.isfinite().all()) for s in scores.values())
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())
    again = make(name, images, labels)(net, couplings)
    assert all(torch.equal(again[r], s) for r, s in scores.items())


@pytest.mark.parametrize("name", ["taylor", "labels", "activation", "measured"])
def test_channels_that_nothing_reads_score_zero(name: str, small) -> None:  # type: ignore[no-untyped-def]
    net, couplings, images, labels = small
    score = make(name, images, labels)(net, couplings)["inner"]
    zero = {i for i, v in enumerate(score.tolist()) if v == 0}
    assert zero == set(SILENT)


def test_what_is_measured_is_the_planners_damage_at_half(small) -> None:  # type: ignore[no-untyped-def]
    net, couplings, images, _ = small
    plain, scores = Taylor([images])(net, couplings), Measured([images])(net, couplings)
    seen = {s.root: s for s in sensitivity(net, couplings, plain, [images], (0.5,))}
    for coupling in couplings:
        one = ladder(coupling, scores[coupling.root], Rules(multiple=1, floor=0.0))
        half = one.widths.index(seen[coupling.root].kept)
        assert one.damage[half] == pytest.approx(seen[coupling.root].divergence, rel=1e-9)
        ratio = scores[coupling.root].sum() / plain[coupling.root].sum()
        torch.testing.assert_close(
            scores[coupling.root], ratio * plain[coupling.root]
        )  # the order is Taylor's


def test_where_no_answers_can_be_compared_taylor_decides(small, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    net, couplings, images, _ = small
    never = [Sensitivity(c.root, c.width, 1, 0.5, math.inf, None) for c in couplings]
    monkeypatch.setattr(measured, "sensitivity", lambda *given: never)
    plain, scores = Taylor([images])(net, couplings), Measured([images])(net, couplings)
    assert all(torch.equal(plain[root], s) for root, s in scores.items())


def test_a_gate_at_zero_is_a_cut(small) -> None:  # type: ignore[no-untyped-def]
    net, couplings, images, _ = small
    for coupling in couplings:
        keep = tuple(i for i in range(coupling.width) if i != 2)
        with gated(net, couplings) as gates, torch.no_grad():
            gates.start(images)
            gate = torch.ones(len(images), coupling.width).double()
            gate[:, 2] = 0
            gates.values[coupling.root] = gate
            silenced = net(images)
        cut = Small().double().eval()
        surgery.apply(cut, PruningPlan((Cut(coupling.root, coupling.width, keep),)), couplings)
        assert torch.allclose(silenced, cut(images), atol=1e-12)


def test_taylor_is_the_second_derivative_of_the_divergence(small) -> None:  # type: ignore[no-untyped-def]
    """Against finite differences of KL(p || p_z) in each gate."""
    net, couplings, images, _ = small
    scores = Taylor([images[:4], images[4:]])(net, couplings)
    step = 1e-3
    for coupling in couplings:
        for c in range(coupling.width):
            divergence = []
            for z in (1 - step, 1 + step):
                with gated(net, couplings) as gates, torch.no_grad():
                    gates.start(images)
                    gates.values[coupling.root] = torch.ones(len(images), coupling.width).double()
                    gates.values[coupling.root][:, c] = z
                    q = net(images).log_softmax(1)
                p = net(images).detach().log_softmax(1)
                divergence.append(float((p.exp() * (p - q)).sum(1).mean()))
            half_second = 0.5 * sum(divergence) / step**2
            assert float(scores[coupling.root][c]) == pytest.approx(half_second, rel=1e-3, abs=1e-9)


def test_drawn_classes_agree_with_all_classes(small) -> None:  # type: ignore[no-untyped-def]
    net, couplings, images, _ = small
    exact = Taylor([images])(net, couplings)["inner"]
    drawn = Taylor([images], exact=0, draws=600)(net, couplings)["inner"]
    assert torch.allclose(drawn, exact, rtol=0.2)


def test_taylor_on_labels_is_the_weights_gradient(small) -> None:  # type: ignore[no-untyped-def]
    net, couplings, images, labels = small
    net.zero_grad()
    nn.functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
    weight = net.outer.weight
    expected = (weight * weight.grad).sum((0, 2, 3)).square()
    assert torch.allclose(
        TaylorLabels([(images, labels)])(net, couplings)["inner"], expected.detach(), atol=1e-14
    )
    net.zero_grad()


def test_taylor_on_other_outputs(small) -> None:  # type: ignore[no-untyped-def]
    class Boxes(Small):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"boxes": super().forward(x)}

    _, couplings, images, _ = small
    score = Taylor([images])(Boxes().double().eval(), couplings)["inner"]
    assert {i for i, v in enumerate(score.tolist()) if v == 0} == set(SILENT)


def transformer() -> tuple[nn.Module, Tensor]:
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(16, 8, 2, 4, 32, 64, num_classes=3).eval()
    nn.init.normal_(net.heads.head.weight)
    return net, torch.randn(3, 3, 16, 16)


def test_attention_used_as_a_function_is_scored() -> None:
    net, images = transformer()
    couplings = graph.find(net, images, verify=False)
    scores = Taylor([images])(net, couplings)
    assert all(float(s.max()) > 0 for s in scores.values())


def test_an_attention_reads_its_queries_keys_and_values_through_one_gate() -> None:
    """As when the channel is silenced in all that the norms hand on, which is all that is read of the stream."""
    net, images = transformer()
    couplings = graph.find(net, images, verify=False)
    stream = next(c for c in couplings if not c.inner)
    with gated(net, couplings) as gates, torch.no_grad():
        gates.start(images)
        gates.values[stream.root] = torch.ones(3, stream.width)
        gates.values[stream.root][:, 5] = 0
        found = net(images)
    mask = torch.ones(stream.width)
    mask[5] = 0
    norms = [m for m in net.modules() if isinstance(m, nn.LayerNorm)]
    handles = [m.register_forward_hook(lambda _m, _a, out: out * mask) for m in norms]
    with torch.no_grad():
        torch.testing.assert_close(found, net(images))
    for handle in handles:
        handle.remove()


def test_what_a_function_reads_past_the_gates_is_seen_in_the_weights() -> None:
    """Swin hands the weights of its attention to a function; no gate is there, so none may speak for the stream."""
    from torchvision.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    net = SwinTransformer([4, 4], 16, [2], [2], [2, 2], num_classes=3).eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)  # as a frozen backbone comes
    images = torch.randn(3, 3, 16, 16)
    couplings = graph.find(net, images, verify=False)
    with gated(net, couplings) as gates, torch.enable_grad():
        gates.start(images)
        found = slopes(net, couplings, gates, net(images)[:, 0].sum())
    assert not any(p.requires_grad for p in net.parameters())
    rows = {c.root: len(found[c.root]) for c in couplings}
    assert {rows[c.root] for c in couplings if not c.inner} == {1}
    assert any(count == 3 for count in rows.values())  # the hidden layers of the perceptrons
    stream = next(c for c in couplings if not c.inner)
    makers = [m for m in stream.members if m.axis == "out" and m.tensor.endswith("weight")]
    net.zero_grad()
    for m in makers:
        net.get_parameter(m.tensor).requires_grad_(True)
    net(images)[:, 0].sum().backward()
    expected = torch.zeros(stream.width, dtype=torch.double)
    for m in makers:
        weight = net.get_parameter(m.tensor)
        if weight.ndim > 1:
            assert weight.grad is not None
            product = (weight.grad * weight).detach().double().movedim(m.dim, 0).flatten(1).sum(1)
            expected += torch.stack([product[list(s)].sum() for s in m.slices])
    torch.testing.assert_close(found[stream.root][0], expected, rtol=1e-3, atol=1e-5)


def test_magnitude_by_hand(small) -> None:  # type: ignore[no-untyped-def]
    net, couplings, _, _ = small
    made = (net.inner.weight**2).sum((1, 2, 3))
    read = (net.outer.weight**2).sum((0, 2, 3))
    expected = torch.stack([made, read]).mean(0).detach()
    assert torch.allclose(Magnitude()(net, couplings)["inner"], expected / expected.mean())
    both = Magnitude(reduce="sum", normalise=False)(net, couplings)["inner"]
    assert torch.allclose(both, 2 * expected)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_lamp_is_its_equation(energies: list[float]) -> None:
    w = np.array(energies)
    expected = [0.0 if v == 0 else v / w[w >= v].sum() for v in w]
    assert lamp(torch.tensor(energies, dtype=torch.double)).numpy() == pytest.approx(
        np.array(expected), abs=1e-12
    )


def test_fpgm_is_the_sum_of_distances(small) -> None:  # type: ignore[no-untyped-def]
    net, couplings, _, _ = small
    filters = net.inner.weight.detach().numpy().reshape(6, -1)
    expected = np.array([sum(np.linalg.norm(a - b) for b in filters) for a in filters])
    assert FPGM(normalise=False)(net, couplings)["inner"].numpy() == pytest.approx(expected)


def test_bn_scale_reads_gains_and_needs_some(small) -> None:  # type: ignore[no-untyped-def]
    net, couplings, images, _ = small
    with torch.no_grad():
        net.norm.weight.copy_(torch.linspace(-1, 1, 8))
    stem = next(c.root for c in couplings if c.root == "stem")
    assert torch.allclose(BNScale()(net, couplings)[stem], torch.linspace(-1, 1, 8).double().abs())
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).double()
    with pytest.raises(ModelError, match="use --score magnitude"):
        BNScale()(bare, graph.find(bare, images[:2], verify=False))


def test_no_images_is_said(small) -> None:  # type: ignore[no-untyped-def]
    net, couplings, _, _ = small
    for criterion in (Taylor([]), TaylorLabels([]), Activation([])):
        with pytest.raises(DataError, match="received none; give --"):
            criterion(net, couplings)


def test_sensitivity_knows_the_silent_channels(small) -> None:  # type: ignore[no-untyped-def]
    from edgeprune.prune.sensitivity import sensitivity

    net, couplings, images, _ = small
    found = sensitivity(net, couplings, Taylor([images])(net, couplings), [images], fractions=(0.33, 0.67))
    inner = [s for s in found if s.root == "inner"]
    assert [s.kept for s in inner] == [4, 2]
    assert inner[0].divergence == pytest.approx(0, abs=1e-12)
    assert inner[0].agreement == 1
    assert inner[1].divergence > 1e-6
