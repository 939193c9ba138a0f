"""Two processes do what one does with the whole batch: gradients, weights after twenty steps, and a whole run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeprune import processes, train
from edgeprune.data.pixels import Pixels
from edgeprune.errors import MissingHere, UsageError
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.objectives.auto import Auto
from edgeprune.objectives.bnm import BNM
from edgeprune.objectives.cdan import CDAN
from edgeprune.objectives.dan import DAN
from edgeprune.objectives.dann import DANN
from edgeprune.objectives.jan import JAN
from edgeprune.objectives.mcc import MCC
from edgeprune.objectives.nrc import NRC
from edgeprune.objectives.shot import SHOT
from edgeprune.objectives.swmmd import SWMMD
from edgeprune.train import Settings
from edgeprune.waist import Objective, Step, Task

KINDS: dict[str, Callable[[Task], Objective]] = {
    "mcc": MCC,
    "dan": DAN,
    "jan": JAN,
    "dann": DANN,
    "cdan": CDAN,
    "bnm": BNM,
    "swmmd": SWMMD,
    "shot": SHOT,
    "nrc": NRC,
    "auto": lambda task: Auto(task, Auto.Knobs(view="weak", statistics="frozen")),
}
TASK = Task(6, 3)


class Plain(nn.Module):
    """No batch-norm, so that a part of a batch is normalised as the whole is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class Normed(Plain):
    """With batch-norm, which `auto` keeps frozen where the shift is small."""

    def __init__(self) -> None:
        super().__init__()
        self.body.insert(2, nn.BatchNorm1d(16))


def network(kind: str = "") -> Network:
    torch.manual_seed(0)
    module = Normed() if kind == "auto" else Plain()
    return Network(module.eval(), "x", Preprocess((4, 4), (0.5,) * 3, (0.3,) * 3), ("a", "b", "c"), "head")


def pixels(seed: int, labelled: bool) -> Pixels:
    random = np.random.default_rng(seed)
    labels = np.arange(40) % 3
    data = random.normal(110, 30, (40, 4, 4, 3)) + 40 * np.eye(3)[labels][:, None, None, :] + 10 * seed
    images = torch.from_numpy(data.clip(0, 255).astype(np.uint8))
    return Pixels(images, torch.from_numpy(labels) if labelled else None, [str(i) for i in range(40)])


def trained(kind: str, steps: int = 20) -> dict[str, Tensor]:
    net = network(kind)
    torch.manual_seed(1)
    objective = KINDS[kind](TASK)
    objective.needs = replace(objective.needs, last=True)  # the chosen ones may be those of the start
    how = Settings(steps=steps, batch=12, lr=1e-2, device="cpu", flip=False, validations=2, optimizer="sgd")
    train.fit(net, objective, pixels(1, False), pixels(0, True), how)
    found = {**net.module.state_dict(), **{f"objective.{k}": v for k, v in objective.state_dict().items()}}
    return {key: value.clone() for key, value in found.items()}


def gradients(kind: str) -> dict[str, Tensor]:
    """Of one batch's whole loss, by the loop's own step; the weights do not move."""
    net = network(kind)
    torch.manual_seed(1)
    objective = KINDS[kind](TASK)
    how = Settings(steps=4, batch=12, lr=0.0, weight_decay=0, device="cpu", flip=False, optimizer="sgd")
    loop = train._Loop(net, objective, (pixels(1, False), pixels(0, True), None), how, None, None, "adapt")
    try:
        loop._refresh(Step(0, 4))
        loop._step(Step(2, 4))
        named = [
            *net.module.named_parameters(),
            *((f"objective.{n}", p) for n, p in objective.named_parameters()),
        ]
        return {name: p.grad.clone() for name, p in named if p.grad is not None}
    finally:
        loop.close()


def together(tmp_path: Path, code: str) -> str:
    """What `code` prints in two processes that torchrun starts; `t` is this file, `out` a folder."""
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib.util\nfrom pathlib import Path\n"
        f"spec = importlib.util.spec_from_file_location('t', {str(__file__)!r})\n"
        "t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)\n"
        f"out = Path({str(tmp_path)!r})\n{code}"
    )
    launcher = [
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(20_000 + os.getpid() % 20_000),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


_BOTH = """
from safetensors.torch import save_file
for kind in t.KINDS:
    for what in ("gradients", "trained"):
        found = getattr(t, what)(kind)
        assert t.processes.size() == 2
        save_file(found, out / f"{kind}-{what}-{t.processes.rank()}")
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("both")
    together(place, _BOTH)
    return place


def far(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max() / one[k].abs().max().clamp_min(1e-6)) for k in one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_whole_batch(kind: str, both: Path) -> None:
    expected = gradients(kind)
    assert len(expected) >= 4
    for rank in (0, 1):
        assert far(expected, load_file(both / f"{kind}-gradients-{rank}")) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_end_at_the_same_weights(kind: str, both: Path) -> None:
    first, second = (load_file(both / f"{kind}-trained-{rank}") for rank in (0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)
    expected = trained(kind)
    assert far(expected, first) < 1e-5
    start = network(kind).module.state_dict()
    assert (
        float((expected["body.1.weight"] - start["body.1.weight"]).abs().max()) > 1e-3
    )  # something was learned


def test_one_process_gathers_nothing_and_shares_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(4, 2)
    assert processes.gathered(x) is x
    assert processes.part(x) is x
    assert processes.divided(7) == 7
    monkeypatch.setattr(processes, "size", lambda: 4)
    assert processes.divided(7) == 4
    with pytest.raises(UsageError, match="a batch of 3 images in 4 processes"):
        processes.divided(3)


_COMMAND = """
import sys
from edgeprune.cli.app import main
sys.argv = ["edgeprune", "adapt", *{words!r}]
sys.exit(main())
"""


@pytest.mark.slow
def test_the_command_in_two_processes_writes_one_run(tmp_path: Path) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for i in range(24):
        place = tmp_path / "images" / ("ab"[i % 2])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(place / f"{i}.png")
    words = [
        "edgeprune.digits_net:digits_net",
        "--weights",
        "none",
        "--classes",
        "2",
        "--size",
        "16",
        "--device",
        "cpu",
    ]
    words += [
        "--source",
        str(tmp_path / "images"),
        "--target",
        str(tmp_path / "images"),
        "--batch",
        "8",
        "--json",
    ]
    words += ["--objective", "mcc", "--steps", "4", "--source-steps", "2", "-o", str(tmp_path / "run")]
    words += ["--cache", str(tmp_path / "cache")]
    printed = together(tmp_path, _COMMAND.format(words=words))
    assert json.loads(printed)["chosen_step"] in range(5)  # printed once
    assert (tmp_path / "run" / "done.json").is_file()
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [m["step"] for m in metrics if "validators" in m and m["stage"] == "adapt"]
    assert steps == [0, 1, 2, 3, 4]
    again = together(
        tmp_path, _COMMAND.format(words=[*words, "--resume"])
    )  # neither process waits for the other
    assert json.loads(again) == json.loads(printed)


def test_auto_is_cuda_or_cpu_never_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics and scores are float64, which Apple's GPUs do not have."""
    asked: list[str] = []
    monkeypatch.setattr(processes, "Fabric", lambda accelerator, **_: asked.append(accelerator))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for cuda in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        processes.fabric("auto", "32-true")
    assert asked == ["cpu", "cuda"]


@pytest.mark.parametrize("device", ["mps", "gpu", "cuda:", "banana", "tpu"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(
        UsageError, match=rf"--device {device}: expected auto, cpu, cuda or cuda:N; Apple's MPS"
    ):
        processes.fabric(device, "32-true")


def test_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        MissingHere, match=r"--device cuda:1: torch .* sees no CUDA device here; take --device cpu"
    ):
        processes.fabric("cuda:1", "32-true")
