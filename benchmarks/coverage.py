"""Which network families can be pruned, end to end: cut to half the MACs, train a step, reload, export, prove, time.

    python -m benchmarks.coverage [--only GLOB] [--keep 0.5,0.27] [--tools edgeprune,torch-pruning] [--shared] [--list]

Random weights, default size; each network in a process of its own, and one row for each share kept and each tool, under
results/. A row that is present is skipped; `--docs` writes docs/prunability.md from the rows. Planning is timed in
seconds of one core.

`--tools torch-pruning` makes the same rows with Torch-Pruning alone: BasePruner with its own defaults, group magnitude,
widths of 8, in steps until the MACs are down. It cannot reload a cut network without pickle, so that step is left out
for it. `--docs` compares the two on the networks that both complete: speed-up over the reduction of MACs. `--shared`
tries other shares than half only on networks that both tools complete at half.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.families import TIMM, TORCHVISION
from edgeprune.artifact import write_atomically
from edgeprune.model import Network

Facts = dict[str, Any]
FOLDER = Path(__file__).with_name("results")
KEPT = 0.5
TOOLS = ("edgeprune", "torch-pruning")
STEPS = 50  # of Torch-Pruning, to 95% of the channels


@dataclass(frozen=True)
class Point:
    """One operating point: the share of the MACs to keep, and whether Torch-Pruning cuts instead of us."""

    kept: float
    theirs: bool = False

    def __str__(self) -> str:
        return f"{self.kept}:{TOOLS[self.theirs]}"

    @classmethod
    def parse(cls, word: str) -> Point:
        """The point that `str` wrote."""
        kept, _, tool = word.partition(":")
        return cls(float(kept), tool == TOOLS[1])

    @property
    def file(self) -> Path:
        """Where its rows are."""
        told = "" if self.kept == KEPT else f"_{self.kept:g}"
        return FOLDER / f"coverage{'_torch_pruning' if self.theirs else ''}{told}.json"

    def completed(self) -> dict[str, Facts]:
        """The rows of the networks that came through every step, by network."""
        return {str(r["network"]): r for r in load(self.file) if not r["failed"]}


def row(spec: str, folder: Path, point: Point, limit: int) -> Facts:
    """Everything for one network; a step that fails is named in `failed` with the first line of its error.

    folder: dense.onnx stays there for other points. limit: seconds; what takes longer has failed.
    """
    facts: Facts = {"network": spec, "kept": point.kept, "failed": None, "cpu": _cpu()}
    step = "open"
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(limit)
    try:
        network = _open(spec)
        ours = (_count, _cut, _train, _reload, _export)
        for work in (_count, _cut_theirs, _train, _export) if point.theirs else ours:
            step = work.__name__.strip("_")
            facts |= work(network, folder, facts)
        step = "dense"
        if not (folder / "dense.onnx").exists():
            _dense(_open(spec), folder)
        step = "time"
        facts |= _time(folder)
    except _TooLong:
        facts["failed"] = f"{step}: took longer than {limit} s"
    except Exception as err:  # a row says what failed; the table is about exactly that
        lines = str(err).strip().splitlines() or [type(err).__name__]
        facts["failed"] = f"{step}: {type(err).__name__}: {lines[0][:200]}"
    finally:
        signal.alarm(0)
    return facts


def _cpu() -> str:
    from edgeprune.bench import machine

    return str(machine.describe()["cpu"]["name"])


class _TooLong(BaseException):
    """A row's time is over; no handler of errors on the way may take it."""


def _too_long(number: int, frame: FrameType | None) -> None:
    raise _TooLong


def _open(spec: str) -> Network:
    import torch

    from edgeprune.opening import open_network
    from edgeprune.options import ModelOptions

    torch.manual_seed(0)
    network, _ = open_network(spec, ModelOptions(weights="none"))
    with torch.no_grad():  # running statistics of some input, so that activations stay finite
        network.module.train()(network.example(4))
    network.module.eval()
    return network


def _count(network: Network, folder: Path, facts: Facts) -> Facts:
    from edgeprune.prune import macs

    dense_macs, dense_params = macs.measure(network.module, network.example())
    return {"dense_macs": dense_macs, "dense_params": dense_params}


def _dense(network: Network, folder: Path) -> None:
    from edgeprune.export import onnx as exporting

    exporting.export(network, folder / "dense.onnx", batch="1:3:3", images=[network.example(3).numpy()])


def _cut(network: Network, folder: Path, facts: Facts) -> Facts:
    import torch

    from edgeprune.prune import budget, graph, macs, surgery
    from edgeprune.prune.scores.magnitude import Magnitude

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin, example = time.process_time(), network.example()
    couplings = graph.find(network.module, example)
    scores = Magnitude()(network.module, couplings)
    limits = {"macs": facts["kept"] * facts["dense_macs"]}
    plan = budget.plan(network.module, example, couplings, scores, limits)
    seconds = round(time.process_time() - begin, 2)
    torch.set_num_threads(threads)
    surgery.apply(network.module, plan, couplings)
    now, params = macs.measure(network.module, example)
    with torch.no_grad():
        assert bool(torch.isfinite(network.module(example)).all()), "the output is not finite"
    frozen = {c.root: c.frozen for c in couplings.all if c.frozen is not None}
    return {
        "plan_s": seconds,
        "couplings": len(couplings.all),
        "frozen": frozen,
        "macs": now,
        "params": params,
    }


def _cut_theirs(network: Network, folder: Path, facts: Facts) -> Facts:
    """Torch-Pruning as its readme shows it: a pruner in steps, the classifier ignored, until the MACs are reached."""
    import torch
    import torch_pruning

    from edgeprune.prune import macs

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin, example, module = time.process_time(), network.example(1), network.module
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.95,
        iterative_steps=STEPS,
        round_to=8,
        ignored_layers=[module.get_submodule(network.classifier)],
    )
    now = facts["dense_macs"]
    for _ in range(STEPS):
        pruner.step()
        now, params = macs.measure(module, example)
        if now <= facts["kept"] * facts["dense_macs"]:
            break
    else:
        raise RuntimeError(f"{now / facts['dense_macs']:.3f} of the MACs are left when nothing more can go")
    seconds = round(time.process_time() - begin, 2)
    torch.set_num_threads(threads)
    with torch.no_grad():
        assert bool(torch.isfinite(module(example)).all()), "the output is not finite"
    return {"plan_s": seconds, "macs": now, "params": params}


def _train(network: Network, folder: Path, facts: Facts) -> Facts:
    _scalar(network.module.train()(network.example(4))).backward()
    network.module.zero_grad()
    network.module.eval()
    return {}


def _reload(network: Network, folder: Path, facts: Facts) -> Facts:
    from edgeprune import checkpoint

    checkpoint.write(folder / "slim.safetensors", network)
    _same_in_a_fresh_process(folder, network)
    return {}


def _export(network: Network, folder: Path, facts: Facts) -> Facts:
    from edgeprune.export import onnx as exporting

    made = exporting.export(network, folder / "slim.onnx", batch="1:3:3", images=[network.example(3).numpy()])
    parity = made.meta["parity"]["relative"]
    return {"onnx_macs": made.meta["macs"], "exporter": made.meta["exporter"], "parity": parity}


def _time(folder: Path) -> Facts:
    from edgeprune.bench import inputs, undisturbed
    from edgeprune.bench.compare import compare
    from edgeprune.runtime import ort

    with ort.open(folder / "dense.onnx") as dense, ort.open(folder / "slim.onnx") as slim:
        feeds = {"dense": inputs.synthetic(dense.inputs), "slim": inputs.synthetic(slim.inputs)}
        samples, _ = undisturbed.measure({"dense": dense, "slim": slim}, feeds, seconds=0.8)
    verdict = compare(samples["dense"], samples["slim"])
    return {"speedup": verdict.speedup, "speedup_low": verdict.ci_low, "speedup_high": verdict.ci_high}


def _scalar(output: Any) -> Any:
    """One number to differentiate: auxiliary heads make a tuple of outputs in training."""
    import torch

    leaves = torch.utils._pytree.tree_leaves(output)
    return torch.stack([leaf.float().mean() for leaf in leaves if isinstance(leaf, torch.Tensor)]).sum()


def _same_in_a_fresh_process(folder: Path, network: Any) -> None:
    import torch

    code = (
        "import sys, torch; from pathlib import Path; from edgeprune import checkpoint; f = Path(sys.argv[1]);"
        "n = checkpoint.read(f / 'slim.safetensors'); torch.set_grad_enabled(False);"  # which picks kernels
        "torch.save(n.module(n.example(2)), f / 'out.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    with torch.no_grad():
        here = network.module(network.example(2))
    assert torch.equal(torch.load(folder / "out.pt", weights_only=True), here), (
        "the reloaded network answers otherwise"
    )


def load(path: Path) -> list[Facts]:
    """The rows of a file; none when it is not there."""
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def _save(rows: list[Facts], path: Path) -> None:
    from edgeprune.bench import machine

    host = machine.describe()
    facts = {"command": "python -m benchmarks.coverage", "packages": host["packages"]}
    write_atomically(path, (json.dumps({**facts, "rows": rows}, indent=1) + "\n").encode())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="glob over the specs")
    parser.add_argument("--list", action="store_true", help="print the rows and their state")
    parser.add_argument("--limit", type=int, default=400, help="seconds a row")
    parser.add_argument("--docs", action="store_true", help="write docs/prunability.md")
    parser.add_argument("--keep", default=str(KEPT), help="shares of the MACs to keep")
    parser.add_argument("--tools", default=TOOLS[0], help="which prune: edgeprune,torch-pruning")
    parser.add_argument("--shared", action="store_true", help="other shares only where both complete half")
    parser.add_argument("--row", nargs="+", metavar="SPEC FOLDER POINT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    tools = args.tools.split(",")
    if wrong := [t for t in tools if t not in TOOLS]:
        parser.error(f"--tools {wrong[0]}: the choices are {', '.join(TOOLS)}")
    points = [Point(float(kept), tool == TOOLS[1]) for kept in args.keep.split(",") for tool in tools]
    if args.row:
        spec, folder, *words = args.row
        for point in map(Point.parse, words):
            print("ROW " + json.dumps(row(spec, Path(folder), point, args.limit)), flush=True)
    elif args.docs:
        from benchmarks import prunability

        prunability.write()
    else:
        specs = [f"torchvision:{n}" for n in TORCHVISION] + [f"timm:{n}" for n in TIMM]
        for spec in (s for s in specs if fnmatch.fnmatch(s, args.only)):
            _network(spec, points, args)
    return 0


def _network(spec: str, points: list[Point], args: argparse.Namespace) -> None:
    """The open rows of one network, listed, or made and saved; those at half first, as others may depend on them."""
    with tempfile.TemporaryDirectory() as folder:
        for half in (True, False):
            some = [p for p in points if (p.kept == KEPT) == half]
            if (
                args.shared
                and not half
                and not all(spec in Point(KEPT, t).completed() for t in (False, True))
            ):
                continue
            todo = [p for p in some if spec not in {r["network"] for r in load(p.file)}]
            if args.list:
                for point in some:
                    print(f"{'open' if point in todo else 'done'}  {spec} {point.file.stem}")
                continue
            for point, made in zip(todo, _in_a_process(spec, folder, todo, args.limit), strict=True):
                _save([*load(point.file), made], point.file)  # another process may have written meanwhile
                print(spec, point.file.stem, made["failed"] or "complete", flush=True)


def _in_a_process(spec: str, folder: str, points: list[Point], limit: int) -> list[Facts]:
    """The rows of a network at some points; a process that ends early is told in those that it did not come to."""
    if not points:
        return []
    words = [sys.executable, "-m", "benchmarks.coverage", "--limit", str(limit), "--row", spec, folder]
    out = subprocess.run([*words, *map(str, points)], capture_output=True, text=True, check=False)
    made = [json.loads(x[4:]) for x in out.stdout.splitlines() if x.startswith("ROW ")]
    lost = f"the process ended with {out.returncode}"
    return [*made, *({"network": spec, "kept": p.kept, "failed": lost} for p in points[len(made) :])]


if __name__ == "__main__":
    sys.exit(main())
