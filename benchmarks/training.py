"""How fast training is: the loop on a folder of images, beside the same steps on tensors in memory, and a plain loop.

    python -m benchmarks.training [--task digits|pacs] [--only GLOB] [--list] [--steps 20] [--rounds 10] [--device cpu]

`loop` is the training loop with MCC on a labelled source and an unlabelled target, as `edgeprune adapt` runs it.
`memory` is the same loop whose batches were made before; the bar is loop / memory >= 0.9. `plain` is what many write:
torchvision's ImageFolder decoding JPEG or PNG with PIL in a DataLoader, the same views, network, loss and optimiser,
and none of the rest. All variants of a row are measured in one process, interleaved round by round; ratios are of
medians with a 99% interval. A turn pays for as many batches as it takes: it ends when the one made ahead is there.
`strong` is the same for FixMatch, whose views cost most. `bf16`, `contiguous` and `compile` are the loop with one thing
changed. Freed memory is kept, as `edgeprune adapt` does;
that is the process's, so the plain loop has it, too. Rows are written to results/training.json as
they finish and skipped when present.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.data import locate
from edgeprune import model, train
from edgeprune.artifact import write_atomically
from edgeprune.bench import compare, machine
from edgeprune.bench.measure import Samples
from edgeprune.commands import start
from edgeprune.data import digits, folder
from edgeprune.data.batches import Batches, RawBatch
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.objectives.fixmatch import FixMatch
from edgeprune.objectives.mcc import MCC, class_confusion
from edgeprune.options import AdaptOptions
from edgeprune.train import Settings
from edgeprune.waist import Step, Task

RESULTS = Path(__file__).with_name("results") / "training.json"
TASKS = {
    "digits": ("edgeprune.digits_net:digits_net", 32, 10),
    "pacs": ("timm:tf_efficientnet_lite0", 128, 7),
}
ROWS = {"data": ("loop", "memory", "plain"), "bf16": ("loop", "bf16"), "contiguous": ("loop", "contiguous")}
ROWS |= {"compile": ("loop", "compile"), "strong": ("loop", "memory")}
ALL = 1000  # steps that the schedules are told of
Work = Callable[[int], None]


def folders(task: str, data: Path | None, work: Path) -> tuple[Path, Path]:
    """Source and target as folders of image files; zips are unpacked, since ImageFolder reads none."""
    if task == "digits":
        digits.write_mnist(work / "mnist")
        digits.write_optdigits(work / "optdigits")
        return work / "mnist", work / "optdigits"
    return unpacked(locate("pacs160_photo", data), work), unpacked(locate("pacs160_art_painting", data), work)


def unpacked(path: Path, work: Path) -> Path:
    """The folder itself, or what a zip holds."""
    if path.is_dir():
        return path
    to = work / path.stem
    if not to.exists():
        with zipfile.ZipFile(path) as archive:
            archive.extractall(to.with_suffix(".part"))
        to.with_suffix(".part").rename(to)
    while len(inner := [p for p in to.iterdir() if not p.name.startswith(".")]) == 1:
        to = inner[0]
    return to


def network(task: str) -> Network:
    """The task's network with random weights: speed does not know them."""
    spec, side, classes = TASKS[task]
    torch.manual_seed(0)
    module = model.build(spec, {})
    pre = Preprocess((side, side), (0.5,) * 3, (0.5,) * 3)
    name, count = model.find_classifier(spec, module, torch.randn(2, 3, side, side))
    if count != classes:
        model.replace_classifier(module, name, classes)
    return Network(module, spec, pre, tuple(str(i) for i in range(classes)), name)


class Ready(Batches):
    """Batches that were made before, again and again."""

    def __init__(self, made: list[RawBatch], steps_per_pass: int) -> None:
        self.made, self._steps = made, steps_per_pass

    @property
    def steps_per_pass(self) -> int:
        """As of the batches they were taken from."""
        return self._steps

    def at(self, step: int) -> RawBatch:
        """One of them."""
        return self.made[step % len(self.made)]

    def close(self) -> None:
        """Nothing to end."""


def ours(task: str, row: str, places: tuple[Path, Path], args: argparse.Namespace, variant: str) -> Work:
    """Steps of the training loop."""
    net = network(task)
    source = folder.labelled(places[0], net.preprocess, None, args.work / "cache")
    target = folder.unlabelled(places[1], net.preprocess, args.work / "cache")
    precision = "bf16-mixed" if variant == "bf16" else "32-true"
    settings = Settings(
        steps=ALL,
        batch=args.batch,
        device=args.device,
        precision=precision,
        flip=task != "digits",
        ema=AdaptOptions().ema,
    )
    features = int(net.module.get_submodule(net.classifier).in_features)  # type: ignore[arg-type]
    objective = (FixMatch if row == "strong" else MCC)(Task(features, len(net.classes)))
    loop = train._Loop(net, objective, (target, source, None), settings, None, None, "adapt")
    if variant == "contiguous":
        loop.format = torch.contiguous_format
        net.module.to(memory_format=torch.contiguous_format)
    if variant == "compile":
        net.module.compile()
    if variant == "memory":
        assert loop.source_batches is not None
        assert loop.target_batches is not None
        for name in ("source_batches", "target_batches"):
            batches = getattr(loop, name)
            made = [batches.at(i) for i in range(8)]
            batches.close()
            setattr(loop, name, Ready(made, batches.steps_per_pass))
    done = 0

    def work(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            loop._step(Step(done % ALL, ALL))
            done += 1
        for batches in (
            loop.source_batches,
            loop.target_batches,
        ):  # what is made ahead is paid for in this turn
            for made_ahead in () if batches is None or variant == "memory" else batches._next.values():
                made_ahead.result()

    return work


def plain(task: str, places: tuple[Path, Path], args: argparse.Namespace) -> Work:
    """Steps of a loop on ImageFolder and DataLoader, without anything of ours but the network and MCC's equation."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    net = network(task)
    side = net.preprocess.size[0]
    low = 0.7 if side > 64 else 1.0
    flip = [transforms.RandomHorizontalFlip()] if task != "digits" else []
    views = transforms.Compose(
        [
            transforms.RandomResizedCrop(side, (low, 1.0)),
            *flip,
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    loaders = [
        torch.utils.data.DataLoader(
            ImageFolder(str(place), views),
            args.batch,
            shuffle=True,
            drop_last=True,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
        )
        for place in places
    ]
    device = torch.device("cuda" if args.device.startswith("cuda") else "cpu")
    module = net.module.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), 5e-4, weight_decay=5e-4)
    streams = [forever(loader) for loader in loaders]

    def work(steps: int) -> None:
        for _ in range(steps):
            (x, y), (other, _) = (next(stream) for stream in streams)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(module(x.to(device)), y.to(device))
            loss = loss + class_confusion(module(other.to(device)), 2.5)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return work


def forever(loader: Any) -> Iterator[Any]:
    """Batches without end."""
    while True:
        yield from loader


def measure(work: dict[str, Work], args: argparse.Namespace) -> dict[str, Samples]:
    """Seconds a step of each variant, in rounds; who begins a round changes."""
    for one in work.values():
        one(args.steps)  # warm: first kernels, first batches
    found: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for number in range(args.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begin = time.perf_counter()
            work[name](args.steps)
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            found[name].append((time.perf_counter() - begin) / args.steps)
    order = np.arange(args.rounds)
    return {name: Samples(np.array(times), order) for name, times in found.items()}


def row(task: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row: images a second of each variant, and their ratios to the loop."""
    places = folders(task, args.data, args.work)
    work = {
        v: plain(task, places, args) if v == "plain" else ours(task, name, places, args, v)
        for v in ROWS[name]
    }
    times = measure(work, args)
    images = 2 * args.batch  # source and target
    facts: dict[str, Any] = {"key": key(task, name, args), "task": task, "row": name}
    facts |= {"batch": args.batch, "threads": torch.get_num_threads(), "device": args.device}
    facts |= {"steps": args.steps, "rounds": args.rounds, "workers": args.workers, "load": os.getloadavg()[0]}
    facts["images_per_s"] = {v: images / float(np.median(s.latency_s)) for v, s in times.items()}
    facts["loop_vs"] = {
        v: compare.compare(s, times["loop"], vs=v).to_json() for v, s in times.items() if v != "loop"
    }
    return facts


def key(task: str, name: str, args: argparse.Namespace) -> str:
    """What tells a row from all others."""
    how = f"{args.device}/batch{args.batch}/threads{torch.get_num_threads()}"
    return f"{task}/{name}/{how}/steps{args.steps}x{args.rounds}/workers{args.workers}"


def main() -> int:
    """Measure the rows that are asked for and open."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="*", help="glob over digits, pacs")
    parser.add_argument("--only", default="*", help=f"glob over the rows {', '.join(ROWS)}")
    parser.add_argument("--list", action="store_true", help="print the rows and their state")
    parser.add_argument("--data", type=Path, help="folder made by benchmarks.data")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "edgeprune-training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32, help="images of each domain in a step")
    parser.add_argument("--workers", type=int, default=1, help="of each DataLoader of the plain loop")
    parser.add_argument("--steps", type=int, default=20, help="steps of each variant in a round")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    start.keep_freed_memory()
    start.flush_denormals()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    there = {r["key"]: r for r in rows}
    for task in (t for t in TASKS if fnmatch.fnmatch(t, args.task)):
        for name in (n for n in ROWS if fnmatch.fnmatch(n, args.only)):
            found = there.get(key(task, name, args))
            if found is None and not args.list:
                found = row(task, name, args)
                rows.append(found)
                host = machine.describe()
                facts = {"packages": host["packages"], "cpu": host["cpu"], "rows": rows}
                write_atomically(RESULTS, (json.dumps(facts, indent=1) + "\n").encode())
            print(key(task, name, args), shown(found), flush=True)
    return 0


def shown(found: dict[str, Any] | None) -> str:
    """A row in a line."""
    if found is None:
        return "open"
    speeds = ", ".join(f"{v} {s:.1f}" for v, s in found["images_per_s"].items())
    ratios = ", ".join(
        f"{r['speedup']:.2f}x {v} [{r['ci_low']:.2f}, {r['ci_high']:.2f}]"
        for v, r in found["loop_vs"].items()
    )
    return f"images/s: {speeds}; the loop is {ratios}"


if __name__ == "__main__":
    sys.exit(main())
