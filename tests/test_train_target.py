"""What training sees of the whole target, and that a run goes on with the images it began with."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeprune import inference, optimise, select, train, validate
from edgeprune.data.pixels import Pixels
from edgeprune.errors import RunError
from edgeprune.objectives.mcc import MCC
from edgeprune.run import Run
from edgeprune.waist import Batch, Needs, Objective, Step
from tests.test_train import TASK, images, network, settings, weights


class Asks(Objective):
    """Remembers what it was shown of the whole target, and the weights after each step."""

    def __init__(self, module: nn.Module, averaged: bool) -> None:
        super().__init__(TASK)
        self.needs = Needs(refresh=True, averaged=averaged)
        self.module = (module,)
        self.shown: list[Tensor] = []
        self.after: list[dict[str, Tensor]] = []

    def refresh(self, features: Tensor, logits: Tensor) -> None:
        self.shown.append(logits.clone())

    def terms(self, source: Batch | None, target: Batch | None, step: Step) -> dict[str, Tensor]:
        assert target is not None
        return {"pull": target.logits.square().mean()}

    def before_update(self, step: Step) -> None:
        self.after.append({k: v.clone() for k, v in self.module[0].state_dict().items()})


@pytest.mark.parametrize("averaged", [False, True])
def test_the_whole_target_is_seen_by_the_network_or_by_the_average_of_its_weights(averaged: bool) -> None:
    target = images(24, shifted=True, labelled=False)  # three steps are a pass
    net = network()
    net.module.set_submodule("body.1", nn.Identity())
    asks = Asks(net.module, averaged)
    train.fit(net, asks, target, None, settings(4, ema=0.98))
    assert len(asks.shown) == 2
    kept: dict[str, Tensor] = {}
    for step, now in enumerate(asks.after[1:4]):  # `after[n]` is after n steps
        kept = optimise.averaged(kept, now, 0.98, step)
    said = []
    for values in (kept, asks.after[3]):
        net.module.load_state_dict(values)
        said.append(inference.predict(net, target)[1])
    assert not torch.allclose(said[0], said[1])
    torch.testing.assert_close(asks.shown[1], said[0 if averaged else 1])


def test_pseudo_labels_come_from_statistics_of_the_plain_target() -> None:
    """Running statistics lag behind, the more where a layer's momentum is small."""
    net, target = network(), images(24, shifted=True, labelled=False)
    norm = net.module.get_submodule("body.1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = 0.001
    before = weights(net)
    asks = Asks(net.module, averaged=False)
    train.fit(net, asks, target, None, settings(4, ema=0.0))
    for shown, now in zip(asks.shown, (before, asks.after[3]), strict=True):
        net.module.load_state_dict(now)
        lagging = inference.predict(net, target)[1]
        inference.reestimate_batchnorm(net.module, target, net.preprocess)
        torch.testing.assert_close(shown, inference.predict(net, target)[1])
        assert not torch.allclose(shown, lagging, atol=1e-2)


def test_the_shift_of_the_domain_is_no_drift() -> None:
    """Statistics that are far from the target's on the first look: training moves little, and is not given up."""
    target = images(64, shifted=True, labelled=False)
    net = network()
    norm = net.module.get_submodule("body.1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    norm.running_mean.fill_(50.0)
    own = validate.statistics(net.module)
    found = train.fit(net, MCC(TASK), target, images(64, False, True), settings(6, validations=2, ema=0.0))
    assert validate.drift(own, validate.statistics(net.module)) > select.DRIFT
    assert len(found.curves) == 3
    assert max(curve["drift"] for curve in found.curves) < 1
    assert found.warnings == []


def test_other_images_than_a_run_began_with_are_refused(tmp_path: Path) -> None:
    target, source = images(24, True, False), images(24, False, True)
    with Run.create(tmp_path / "r", command="adapt", model="x", config={}) as run:
        train.fit(network(), MCC(TASK), target, source, settings(2), run=run)
    with Run.create(tmp_path / "r", command="adapt", model="x", config={}, resume=True) as run:
        more = images(32, True, False)
        with pytest.raises(RunError, match="adapt began with 24 target images, and there are 32 images now"):
            train.fit(network(), MCC(TASK), more, source, settings(2), run=run)
        renamed = Pixels(target.images, None, [*target.names[1:], "no UTF-8: \udcff"])
        with pytest.raises(
            RunError, match="adapt began with 24 target images, and there are other files now"
        ):
            train.fit(network(), MCC(TASK), renamed, source, settings(2), run=run)
        train.fit(network(), MCC(TASK), target, source, settings(2), run=run)
