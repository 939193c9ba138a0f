"""Which parameters learn, how fast, and that several batches a step are their mean."""

import pytest
import torch
from torch import Tensor, nn

from edgeprune import optimise, train
from edgeprune.data.pixels import Pixels
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.objectives.cdan import CDAN
from edgeprune.objectives.dann import DANN
from edgeprune.objectives.source import Source
from edgeprune.objectives.together import Together
from edgeprune.optimise import Settings
from edgeprune.waist import Batch, Needs, Objective, Step, Task


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.norm(self.body(x)).mean((2, 3))))


def network() -> Network:
    torch.manual_seed(0)
    return Network(Tiny().eval(), "x", Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3), ("a", "b"), "head")


def images(count: int) -> Pixels:
    data = torch.randint(0, 256, (count, 8, 8, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return Pixels(data, torch.arange(count) % 2, [str(i) for i in range(count)])


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (Needs(), {"body.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"}),
        (Needs(freeze_classifier=True), {"body.weight", "norm.weight", "norm.bias"}),
        (Needs(norms_only=True), {"norm.weight", "norm.bias"}),
    ],
)
def test_what_learns_and_what_comes_back(needs: Needs, expected: set[str]) -> None:
    net = network()
    net.module.get_parameter("body.bias").requires_grad_(False)  # the caller's own wish is kept
    with optimise.learning(net, needs):
        assert {n for n, p in net.module.named_parameters() if p.requires_grad} == expected
    assert {n for n, p in net.module.named_parameters() if not p.requires_grad} == {"body.bias"}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_rates(kind: str) -> None:
    net = network()
    how = Settings(10, lr=0.5, head_lr=3.0, warmup=0.0, optimizer=kind)  # type: ignore[arg-type]
    made = optimise.optimizer(net, Source(Task(4, 2)), how)
    optimise.set_rates(made, how, Step(5, 11))
    rate = 0.5 * Step(5, 11).rate(0.0)
    assert [group["lr"] for group in made.param_groups] == pytest.approx([rate, 3 * rate])
    assert [len(group["params"]) for group in made.param_groups] == [4, 2]
    for adversary in (DANN(Task(4, 2)), Together([(1.0, Source(Task(4, 2))), (1.0, CDAN(Task(4, 2)))])):
        made = optimise.optimizer(net, adversary, how)
        optimise.set_rates(made, how, Step(5, 11))
        assert [group["lr"] for group in made.param_groups] == pytest.approx([rate, 3 * rate, 10 * rate])
        own = made.param_groups[2]["params"]
        assert [id(p) for p in own] == [id(p) for p in adversary.parameters()]


class Taught(Objective):
    """Cross entropy on plain views, with labels that follow from the index."""

    needs = Needs(views=("plain",))

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        assert target is not None
        return {"taught": nn.functional.cross_entropy(target.logits, target.index % 2)}


def test_several_batches_a_step_are_their_mean() -> None:
    """Two batches of four are the one batch of eight, for a loss that is a mean over images."""
    start, nets = network().module.state_dict(), (network(), network())
    for net, batch in zip(nets, (8, 4), strict=True):
        how = Settings(3, batch, 0.1, device="cpu", optimizer="sgd", validations=1, accumulate=8 // batch)
        loop = train._Loop(net, Taught(Task(4, 2)), (images(24), None, None), how, None, None, "adapt")
        shown = [loop._step(Step(number, 3))["taught"] for number in range(3)]
        loop.close()
        assert shown[2] < shown[0]
    for name, value in nets[0].module.state_dict().items():
        torch.testing.assert_close(nets[1].module.state_dict()[name], value)
        assert not torch.equal(value, start[name])
