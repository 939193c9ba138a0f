"""What domain-adaptive low rank keeps, against other closed forms at equal ranks: no label, no training after it.

    python -m benchmarks.dalr [--task GLOB] [--layers GLOB] [--form GLOB] [--seeds 0,1,2] [--list | --table]

The paper's claim (Masana et al., ICCV 2017): at equal accuracy truncated SVD needs 4 times the parameters or more in a
large fully connected layer. Tasks: `fc`, the two 1,024-wide layers of a VGG-11-BN, MNIST to optical digits at 32 px,
trained here once a seed; `pacs`, all 1x1 convolutions of the network of that task; `imagenet`, the classifier of that
network as it comes, 1,000 classes, on paintings of seven kinds: there are no such labels, so what is measured is how
many answers agree with the whole layer's, on the half of the paintings that it was not solved on. A row is one layer
group, form and rank: forward passes alone, in seconds. Rows go to results/dalr.json as they finish and are skipped when
there. Target labels are read for the accuracy alone. `-source` forms see the activations of source images in place of
the target's: what knowing the activations is worth without knowing the domain.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import accuracy
from benchmarks.accuracy import Place
from benchmarks.cases import Case
from benchmarks.data import locate
from benchmarks.tasks import TASKS, Task
from edgeprune import checkpoint, inference
from edgeprune.data import folder
from edgeprune.data.pixels import Chosen, Pixels
from edgeprune.methods.dalr import candidates
from edgeprune.model import Network
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions
from edgeprune.prune import lowrank, surgery

Row = dict[str, Any]
RESULTS = Path(__file__).with_name("results") / "dalr.json"
FORMS = ("svd", "svd-bias", "dalr", "centred", "dalr-source", "centred-source")
RIDGE, POSITIONS = 1e-3, 16  # those of --method dalr


class VGG11(nn.Module):
    """VGG-11 with batch-norm for 32 x 32 images (Simonyan and Zisserman, 2015), its two wide layers 1,024 wide."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        from torchvision.models import vgg11_bn

        self.features = vgg11_bn(weights=None).features
        self.fc6, self.fc7 = nn.Linear(512, 1024), nn.Linear(1024, 1024)
        self.classifier = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, 32, 32)."""
        x = self.features(x).flatten(1)
        out: Tensor = self.classifier(self.fc7(self.fc6(x).relu()).relu())
        return out


def vgg11(num_classes: int = 10) -> VGG11:
    """The factory by which the tool opens it."""
    return VGG11(num_classes)


SPEC = "benchmarks.dalr:vgg11"
FC = Task(
    "fc",
    TASKS["digits"].images,
    lambda data: (SPEC, "--weights", "none", "--classes", "10", "--size", "32"),
    ("--no-flip", "--batch", "64", "--lr", "1e-3"),
    ("--steps", "300"),
    ("--steps", "150"),
    (),
    ("--trust", SPEC),
)
IMAGENET = replace(TASKS["pacs"], name="imagenet")


class Group(NamedTuple):
    """Layers that become pairs together, at ranks that are numbers or, below 1, shares of a layer's full rank."""

    task: str
    name: str
    ranks: tuple[float, ...]


GROUPS = (
    *(Group("fc", name, (4, 8, 16, 32, 64, 128, 256)) for name in ("fc6", "fc7", "fc6+fc7")),
    Group("pacs", "pointwise", (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5)),
    Group("imagenet", "classifier", (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)),
)


@dataclass(frozen=True)
class Cell:
    """One row to be measured."""

    group: Group
    form: str
    rank: float
    seed: int

    @property
    def key(self) -> str:
        """What tells this row from all others."""
        return f"{self.group.task}/{self.group.name}/{self.form}/{self.rank:g}/{self.seed}"


class Bench:
    """One task and seed: its network, its images, and what enters its layers, read once for all its rows."""

    def __init__(self, task: str, seed: int, place: Place, limit: int) -> None:
        self.place, self.limit, self.task = place, limit, place.tasks[task]
        if task == IMAGENET.name:
            self.network = _as_it_comes(place)
        else:
            self.network = checkpoint.read(_adapted(task, seed, place), self.task.trust[1:])
        self._moments: dict[tuple[str, str], Mapping[str, lowrank.Moments]] = {}
        self._entering: dict[str, Tensor] = {}
        module = self.network.module.eval()
        able = candidates(module, self.network.classifier)
        self.layers = {name: module.get_submodule(name) for name in able}

    @cached_property
    def images(self) -> dict[str, Pixels]:
        """target, without labels; source, without labels; test: the target's with them, or its other half without."""
        source, target, labelled = self.task.images(self.place.work, self.place.data)
        assert source is not None
        pre = self.network.preprocess
        found = {"target": folder.unlabelled(target, pre), "source": folder.unlabelled(source, pre)}
        if self.task.name == IMAGENET.name:
            found["target"], found["test"] = halves(found["target"])
        else:
            found["test"] = folder.labelled(labelled, pre, self.network.classes)
        return {name: pixels.spread(self.limit) for name, pixels in found.items()}

    def names(self, group: str) -> list[str]:
        """The layers of a group."""
        if group == "pointwise":
            return [n for n, one in self.layers.items() if getattr(one, "kernel_size", None) == (1, 1)]
        return group.split("+")

    def moments(self, group: str, domain: str) -> Mapping[str, lowrank.Moments]:
        """What enters the layers of a group on one domain's images."""
        if (group, domain) not in self._moments:
            with lowrank.watching(self.network.module, self.names(group), POSITIONS) as seen:
                inference.logits_of(self.network.module, self.images[domain], self.network.preprocess)
            self._moments[group, domain] = seen
        return self._moments[group, domain]

    def answers(self, network: Network, group: str, images: str) -> Tensor:
        """(N,) classes; where the classifier alone differs, from what enters it, which is read once."""
        pixels = self.images[images]
        if self.names(group) != [network.classifier]:
            return inference.logits_of(network.module, pixels, network.preprocess).argmax(1)
        if images not in self._entering:
            self._entering[images] = inference.predict(self.network, pixels)[0]
        logits: Tensor = network.module.get_submodule(network.classifier)(self._entering[images])
        return logits.argmax(1)

    def row(self, cell: Cell) -> Row:
        """The facts of one row. accuracy: in percent, or the agreement on other images where none has a label."""
        begun = time.monotonic()
        slim, before, after = self._slim(cell)
        group, labels = cell.group.name, self.images["test"].labels
        agreed = {
            name: _share(self.answers(slim, group, name), self.answers(self.network, group, name))
            for name in ("target", "test")[: 1 if labels is not None else 2]
        }
        whole = 1.0 if labels is None else _share(self.answers(self.network, group, "test"), labels)
        right = agreed["test"] if labels is None else _share(self.answers(slim, group, "test"), labels)
        return {
            "key": cell.key,
            "task": cell.group.task,
            "layers": group,
            "form": cell.form,
            "rank": cell.rank,
            "seed": cell.seed,
            "accuracy": round(100 * right, 2),
            "whole": round(100 * whole, 2),
            "agreement": round(agreed["target"], 4),
            "params": after,
            "dense_params": before,
            "images": {name: len(pixels) for name, pixels in self.images.items()},
            "seconds": round(time.monotonic() - begun, 1),
            "command": f"python -m benchmarks.dalr --task {cell.group.task} --layers {group} "
            f"--form {cell.form} --seeds {cell.seed} --images {self.limit}",
            "machine": accuracy.machine_of(self.place),
        }

    def _slim(self, cell: Cell) -> tuple[Network, int, int]:
        """The network with pairs in place of layers, and how many weights these had, and have."""
        form = cell.form.removesuffix("-source")
        moments = self.moments(cell.group.name, "target" if form == cell.form else "source")
        slim = copy.copy(self.network)
        slim.module = copy.deepcopy(self.network.module)
        before = after = 0
        for name, seen in moments.items():
            layer = slim.module.get_submodule(name)
            weight = lowrank.matrix(layer)
            m, n = weight.shape
            rank = int(cell.rank) if cell.rank >= 1 else max(1, round(cell.rank * min(m, n)))
            bias = layer.bias
            assert bias is None or isinstance(bias, Tensor)
            surgery.split(slim.module, name, lowrank.factors(weight, bias, seen, rank, form, RIDGE))
            before, after = before + m * n, after + rank * (m + n)
        return slim, before, after


def halves(pixels: Pixels) -> tuple[Pixels, Pixels]:
    """Images without labels in two, every second one in each; nothing is copied."""
    index = torch.arange(len(pixels))
    first, second = (Pixels(Chosen(pixels.images, index[k::2]), None, pixels.names[k::2], []) for k in (0, 1))
    return first, second


def _share(answers: Tensor, expected: Tensor) -> float:
    return float((answers == expected).double().mean())


def _as_it_comes(place: Place) -> Network:
    """The network of the task pacs with the ImageNet weights and their 1,000 classes."""
    weights = str(locate("efficientnet-lite0-57934424.pth", place.data))
    words = ModelOptions(weights=weights, map_by_order=True, size=128, mean="0.5", std="0.5")
    return open_network("timm:tf_efficientnet_lite0", words)[0]


def _adapted(task: str, seed: int, place: Place) -> Path:
    """The run of the adapted network; it is made when it is not there."""
    case = Case("adapt", task, "auto", seed, ("--objective", "auto"))
    found = accuracy.made(case, place)
    if "failed" in found:
        sys.exit(f"{case.key}: {found['failed']}")
    return place.run(case)


def cells(seeds: Sequence[int]) -> list[Cell]:
    """Every row, those of one task and seed together."""
    return [
        Cell(group, form, rank, seed)
        for seed in seeds
        for group in GROUPS
        for form in FORMS
        for rank in group.ranks
    ]


def work(wanted: Sequence[Cell], place: Place, limit: int, file: Path = RESULTS) -> None:
    """Measure the rows that are open, and write each as it finishes."""
    done = {row["key"] for row in accuracy.load(file)}
    bench: tuple[tuple[str, int], Bench] | None = None
    for cell in (c for c in wanted if c.key not in done):
        of = cell.group.task, cell.seed
        if bench is None or bench[0] != of:
            bench = of, Bench(*of, place, limit)
        found = bench[1].row(cell)
        rows = [r for r in accuracy.load(file) if r["key"] != cell.key]
        accuracy.save([*rows, found], file)
        print(f"{cell.key:36} {found['accuracy']:6.2f} of {found['whole']:.2f}", flush=True)


def main() -> int:
    """Measure the rows that are asked for and open, or say which there are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="*", help="glob over the tasks: fc, pacs, imagenet")
    parser.add_argument("--layers", default="*", help="glob over the layers, such as fc6")
    parser.add_argument("--form", default="*", help="glob over the closed forms")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--images", type=int, default=5000, help="most images of each domain")
    parser.add_argument("--list", action="store_true", help="print the rows and which are there")
    parser.add_argument("--table", action="store_true", help="print the rows that are there as Markdown")
    parser.add_argument("--data", type=Path, help="folder made by benchmarks.data")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    wanted = [
        cell
        for cell in cells(tuple(int(s) for s in args.seeds.split(",")))
        if fnmatch.fnmatch(cell.group.task, args.task)
        and fnmatch.fnmatch(cell.group.name, args.layers)
        and fnmatch.fnmatch(cell.form, args.form)
    ]
    rows = accuracy.load(RESULTS)
    if args.table:
        from benchmarks import pages_dalr

        print(pages_dalr.table(rows))
    elif args.list:
        done = {row["key"] for row in rows}
        print("\n".join(f"{'done' if c.key in done else 'open'}  {c.key}" for c in wanted))
    else:
        work(
            wanted,
            Place(args.data, args.work, args.device, {**TASKS, "fc": FC, "imagenet": IMAGENET}),
            args.images,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
