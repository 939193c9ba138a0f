from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune import train
from edgeprune.data.pixels import Pixels
from edgeprune.errors import UsageError
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.objectives.tent import Tent
from edgeprune.train import Settings
from edgeprune.waist import Batch, Step, Task

Array = NDArray[np.float64]
Slope = Callable[[Callable[[Array], float], Array], Array]


class Tiny(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.body(x).mean((2, 3))))


def network(norm: bool) -> Network:
    torch.manual_seed(0)
    return Network(
        Tiny(norm).eval(), "x:tiny", Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3), ("a", "b"), "head"
    )


def images() -> Pixels:
    data = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    return Pixels(torch.from_numpy(data), None, [str(i) for i in range(12)])


def entropy(logits: Array) -> float:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    return float(-(p * np.log(p)).sum(1).mean())


@pytest.mark.parametrize(("count", "classes"), [(1, 2), (5, 4), (9, 7)])
@pytest.mark.parametrize("scale", [0.1, 2.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient(count: int, classes: int, scale: float, dtype: torch.dtype, slope: Slope) -> None:
    z = np.random.default_rng(0).normal(0, scale, (count, classes))
    logits = torch.tensor(z, dtype=dtype, requires_grad=True)
    batch = Batch(logits, logits, None, torch.arange(count))
    loss = Tent(Task(4, classes)).terms(None, batch, Step(0, 1))["entropy"]
    assert loss.item() == pytest.approx(entropy(z), abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, [logits])
    np.testing.assert_allclose(gradient.numpy(), slope(entropy, z), atol=1e-5)


def test_only_gains_and_shifts_learn() -> None:
    net = network(True)
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    train.fit(
        net, Tent(Task(4, 2)), images(), None, Settings(6, batch=4, lr=0.1, weight_decay=0.5, device="cpu")
    )
    after = net.module.state_dict()
    moved = {
        k for k in after if not torch.equal(after[k], before[k]) and "running" not in k and "num" not in k
    }
    assert moved == {"body.1.weight", "body.1.bias"}
    assert all(p.requires_grad and p.grad is None for p in net.module.parameters())


def test_a_network_without_norms_is_told() -> None:
    with pytest.raises(UsageError, match=r"x:tiny has no normalisation layer .* take another --objective"):
        train.fit(network(False), Tent(Task(4, 2)), images(), None, Settings(2, batch=4, device="cpu"))
