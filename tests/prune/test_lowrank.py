"""Closed forms against a direct float64 reading, and pairs against the layers they replace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import PlanError
from edgeprune.prune import lowrank, surgery


def skewed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    w, b = torch.randn(12, 20, generator=g).double(), torch.randn(12, generator=g).double()
    mix = torch.randn(20, 20, generator=g).double() * torch.linspace(2, 0.1, 20).double()
    return w, b, (torch.randn(300, 20, generator=g).double() @ mix.T).relu()


def seen(x: torch.Tensor, parts: int = 3) -> lowrank.Moments:
    moments = lowrank.Moments.of(x.shape[1])
    for some in x.chunk(parts):
        moments.add(some)
    return moments


@pytest.mark.parametrize("form", lowrank.FORMS)
def test_forms_follow_their_equations(form: str) -> None:
    w, b, x = skewed()
    got = lowrank.factors(w, b, seen(x), 5, form, 0.01)
    mean, c = x.mean(0), x - x.mean(0) if form == "centred" else x
    gram = c.T @ c
    shrink = gram @ torch.linalg.inv(gram + 0.01 * gram.trace() / 20 * torch.eye(20).double())
    if form.startswith("svd"):
        u, s, v = torch.linalg.svd(w)
        what = u[:, :5] * s[:5] @ v[:5]
    else:
        z = w @ c.T if form == "dalr" else w @ torch.linalg.cholesky(gram @ shrink)
        u = torch.linalg.svd(z, full_matrices=False)[0][:, :5]
        # p < n reads the same through the p x p system: G(G+lI)^-1 = X^T (X X^T + lI)^-1 X
        dual = c.T @ torch.linalg.solve(c @ c.T + 0.01 * gram.trace() / 20 * torch.eye(len(c)).double(), c)
        assert torch.allclose(dual, shrink, atol=1e-8)
        what = u @ u.T @ w @ shrink
    bias = b + (w - what) @ mean if form in ("svd-bias", "centred") else b
    assert torch.allclose(got.second @ got.first, what, atol=1e-6)
    assert got.bias is not None
    assert torch.allclose(got.bias, bias, atol=1e-5)


def test_streamed_moments_equal_direct_ones() -> None:
    x = skewed()[2]
    assert torch.allclose(seen(x, 7).gram, x.T @ x)
    assert seen(x, 7).count == 300


@pytest.mark.parametrize("form", lowrank.FORMS)
def test_few_samples_say_the_same_as_their_gram_matrix(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where n x n is too large the samples themselves are kept; here 12 of 20 values."""
    w, b, x = skewed()
    gram = seen(x[:12])
    monkeypatch.setattr(lowrank, "MOST_BYTES", 8 * 20 * 20 - 1)
    held = seen(x[:12])
    assert isinstance(held, lowrank.Held)
    assert not held.gram.numel()
    torch.testing.assert_close(lowrank.spectrum(w, held), lowrank.spectrum(w, gram))
    left, right = (lowrank.factors(w, b, one, 5, form, 0.01) for one in (held, gram))
    torch.testing.assert_close(left.second @ left.first, right.second @ right.first)
    torch.testing.assert_close(left.bias, right.bias)


def test_samples_that_are_kept_stay_few(monkeypatch: pytest.MonkeyPatch) -> None:
    w, b, x = skewed()
    thin = seen(x[::16])
    monkeypatch.setattr(lowrank, "MOST_BYTES", 8 * 20 * 19)
    held = seen(x, parts=7)
    assert held.count == 19, "every 16th of 300"
    torch.testing.assert_close(held.total, x[::16].sum(0))
    left, right = (lowrank.factors(w, b, one, 5) for one in (held, thin))
    torch.testing.assert_close(left.second @ left.first, right.second @ right.first)


def test_groups_hold_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "MOST_BYTES", 8 * 100)
    sizes = {"a": 6, "b": 8, "c": 6, "d": 50, "e": 1}
    assert lowrank.groups(sizes) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert lowrank.groups({}) == []


def test_low_rank_outputs_come_back_exactly() -> None:
    w, b, x = skewed()
    x = x[:, :4] @ torch.randn(4, 20, generator=torch.Generator().manual_seed(1)).double()
    got = lowrank.factors(w, b, seen(x), 4, "centred", 1e-12)
    assert got.bias is not None
    assert torch.allclose(x @ (got.second @ got.first).T + got.bias, x @ w.T + b, atol=1e-5)


@pytest.mark.parametrize(
    "words", [{"stride": 2}, {"padding": 1}, {"dilation": 2, "padding": (2, 1)}, {"padding": "same"}]
)
def test_a_pair_of_full_rank_is_the_convolution(words: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, **words))  # type: ignore[arg-type]
    x = torch.randn(16, 3, 9, 9)
    whole = copy.deepcopy(net)
    with lowrank.watching(net, ["0"], 10**6) as moments:
        expected = net(x)
    weight, bias = lowrank.matrix(net[0]), net[0].bias
    outputs = expected.transpose(0, 1).flatten(1).double().mean(1)
    mean = moments["0"].total / moments["0"].count
    assert isinstance(bias, Tensor)
    assert torch.allclose(
        weight @ mean + bias.double(), outputs, atol=1e-5
    )  # padding is counted with its zeros
    surgery.split(net, "0", lowrank.factors(weight, bias, moments["0"], 8, "centred", 1e-9))
    assert torch.allclose(net(x), whole(x), atol=1e-4)


def test_grouped_convolutions_are_refused() -> None:
    with pytest.raises(PlanError, match="groups=1"):
        lowrank.matrix(nn.Conv2d(4, 4, 3, groups=2))


def test_products_are_counted_an_image_in_windows_and_over_calls() -> None:
    """Four windows of an image are rows of the batch, and the layer is called twice."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            windows = x.reshape(len(x) * 4, 4, 3)
            out: torch.Tensor = self.layer(self.layer(windows))
            return out.reshape(len(x), 16, 3)

    net = Windows()
    with lowrank.watching(net, ["layer"], 16) as found, torch.no_grad():
        for images in (5, 2):
            net(torch.randn(images, 16, 3))
    assert found["layer"].positions == 2 * 16
    assert found["layer"].count == 2 * 16 * 7
