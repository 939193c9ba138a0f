"""ResNet-56 on JPEG images at 2.1 times fewer MACs, without labels: our cut against Torch-Pruning's, recovered alike.

    python -m benchmarks.recovery [--data DIR] [--work DIR] [--list]

Torch-Pruning chooses by its group magnitude among the inner convolutions of the blocks: its graph does not follow the
strided slice and the padding of these shortcuts, and cutting what blocks put out gives a wrong network. Its choice is
written as a plan, so both cuts run through the same command: `edgeprune prune ADAPTED --plan FILE --recover PASSES`.
Points: after the cut alone, after batch-norm statistics were taken from the target, after one and after three passes
over the 10,000 unlabelled images. `auto` beside them is the method as users run it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import accuracy, torch_pruning_plan
from benchmarks.accuracy import Place
from benchmarks.cases import Case
from benchmarks.tasks import TASKS
from edgeprune import records

RESULTS = Path(__file__).with_name("results") / "recovery.json"
KEPT = 1 / 2.1
POINTS = {"cut": ("--recover", "0", "--no-bn-recal"), "statistics": ("--recover", "0")} | {
    f"{n} passes": ("--recover", str(n)) for n in (1, 3)
}


def adapted(place: Place) -> Path:
    """The run of the dense network after adaptation, which both cuts start from."""
    case = Case("adapt", "cifar-jpeg", "auto", 0, ("--objective", "auto"))
    found = accuracy.row(case, place)
    if "failed" in found:
        raise SystemExit(f"the dense network was not adapted: {found['failed']}")
    return place.run(case)


def command(dense: Path, place: Place, out: Path, *words: str) -> list[str]:
    """`edgeprune prune` of the adapted network on the task's images."""
    task = TASKS["cifar-jpeg"]
    _, target, labelled = task.images(place.work, place.data)
    images = ("--target", str(target), "--evaluate", str(labelled))
    rest = (*images, *task.common, *task.trust, "--lr", "1e-3", "--device", place.device, "-o", str(out))
    return ["edgeprune", "prune", str(dense), *rest, "--json", *words]


def run(words: list[str], out: Path) -> dict[str, Any]:
    """The results of a command, taken from its folder when it ran before; SystemExit with its message when it fails."""
    if not records.is_done(out):
        program = [str(Path(sys.executable).with_name("edgeprune")), *words[1:]]
        program += ["--resume"] if out.exists() else []
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{shlex.join(words)}: exit {done.returncode}: {done.stderr[-500:]}")
    return dict(records.results(out))


def ours(dense: Path, place: Place) -> Path:
    """Our plan for one cut to the budget, by Taylor alone: on this network measured scores change little."""
    out = place.work / "recovery-plan"
    words = ("--macs", f"{KEPT:.4f}", "--steps", "1", "--score", "taylor", *POINTS["cut"])
    run(command(dense, place, out, *words), out)
    return out / "plan.json"


def theirs(dense: Path, place: Place) -> Path:
    """Torch-Pruning's choice among the inner convolutions, as a plan."""
    from edgeprune import checkpoint

    network = checkpoint.read(dense, ["examples.resnet_cifar:resnet56"])
    plan = torch_pruning_plan.choose(network, KEPT, lambda n: n.startswith("layer") and n.endswith("conv1"))
    file = place.work / "torch-pruning-plan.json"
    file.write_text(json.dumps(plan.to_json()))
    return file


def rows(dense: Path, place: Place) -> dict[str, list[str]]:
    """Name of a row -> its command."""
    plans = {"ours": ours(dense, place), "torch-pruning": theirs(dense, place)}
    found = {}
    for name, plan in plans.items():
        for point, words in POINTS.items():
            out = place.work / f"recovery-{name}-{point.replace(' ', '-')}"
            found[f"{name}, {point}"] = command(dense, place, out, "--plan", str(plan), *words)
    for passes in (1, 3):
        out = place.work / f"recovery-auto-{passes}"
        words = ("--macs", f"{KEPT:.4f}", "--recover", str(passes))
        found[f"auto, {passes} passes"] = command(dense, place, out, *words)
    return found


def main() -> int:
    """Run the rows that are open; each is written as it finishes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder made by benchmarks.data")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--list", action="store_true", help="print the rows that are done, run nothing")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    done = {r["key"]: r for r in accuracy.load(RESULTS)}
    if args.list:
        for key, one in done.items():
            print(f"{key:28} {one['accuracy']:.2f}%  {one['macs_kept']:.3f} of the MACs")
        return 0
    place = Place(args.data, args.work, args.device)
    for key, words in rows(adapted(place), place).items():
        if key in done:
            continue
        found = run(words, Path(words[words.index("-o") + 1]))
        done[key] = {
            "key": key,
            "accuracy": round(100 * found["accuracy"], 2),
            "dense": round(100 * found["accuracy_before"], 2),
            "macs_kept": round(found["macs"] / found["dense_macs"], 4),
            "params_kept": round(found["params"] / found["dense_params"], 4),
            "command": accuracy.portable(words, place),
        }
        accuracy.save(list(done.values()), RESULTS)
        print(key, done[key]["accuracy"], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
