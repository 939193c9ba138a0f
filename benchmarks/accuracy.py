"""How accurate networks are after adapting, and after pruning, on the tasks of benchmarks/tasks.py.

    python -m benchmarks.accuracy adapt|prune [--task GLOB] [--only GLOB] [--seeds 0,1,2] [--list] [--device cpu]

Each row is one command of the tool, in a process of its own, written to results/accuracy.json as it finishes and
skipped when present; a row that was killed resumes. Runs stay in --work, because rows share the cloud model and the
adapted model of their task and seed. `chosen` is the accuracy of the checkpoint that was picked without labels, on all
evaluation images; `last` and `oracle` are of the last and the best validated step, on at most 1,024 of them.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import edgeprune
from benchmarks import torch_pruning_plan
from benchmarks.cases import LABELLED, TORCH_PRUNING, Case, adapted, adapting, common, pruning
from benchmarks.tasks import TASKS, Task, few
from edgeprune import __version__, artifact, checkpoint, records
from edgeprune.artifact import write_atomically
from edgeprune.bench import inputs, machine, undisturbed
from edgeprune.bench.compare import compare
from edgeprune.runtime import ort

Row = dict[str, Any]
RESULTS = Path(__file__).with_name("results") / "accuracy.json"
LIMIT = 60 * 60.0  # the aim is 20 minutes on a quiet machine


@dataclass(frozen=True)
class Place:
    """Where the data and the runs lie, and on what the rows run."""

    data: Path | None
    work: Path
    device: str
    tasks: Mapping[str, Task] = field(default_factory=lambda: TASKS)

    def run(self, case: Case) -> Path:
        """The run folder of a row."""
        return self.work / case.key.replace("/", "-").replace("=", "-")


def command(case: Case, place: Place) -> list[str]:
    """The words of a row's command; what it starts from is made first."""
    task = place.tasks[case.task]
    source, target, labelled = task.images(place.work, place.data)
    sources = ("--source", str(source)) if source else ()
    images = (*sources, "--target", str(target), "--evaluate", str(labelled))
    head: tuple[str, ...]
    if case.stage == "cloud":
        head = ("adapt", *task.model(place.data), "--objective", "source", "--source-steps", "0", *task.cloud)
    elif case.stage == "adapt":
        head = ("adapt", *_cloud(task, case, place), *task.adapt)
        if task.older is not None and case.name in ("auto", "auto+partial"):
            head = (*head, *task.older(place.data))
    else:
        head = ("prune", *_start(task, case, place), *task.prune)
        if task.older is not None and case.name.partition("+")[0] in ("prune-then-adapt", "adapt-then-prune"):
            head += task.older(place.data)  # these adapt by `auto`, as the dense network was adapted
        if case.name == TORCH_PRUNING:
            head += ("--plan", str(_their_plan(case, place, Path(head[1]))))
        if case.name in LABELLED:
            head += (
                "--labelled-target",
                str(few(labelled, place.work / "data" / f"few-{case.task}-{case.seed}", case.seed)),
            )
    words = (*head, *images, *common(task, case), *task.trust, *case.words, "--seed", str(case.seed))
    return ["edgeprune", *words, "--device", place.device, "-o", str(place.run(case)), "--json"]


def _their_plan(case: Case, place: Place, dense: Path) -> Path:
    """Torch-Pruning's plan for a row's budget; it does not follow the shortcuts of the CIFAR network."""
    file = place.work / "data" / f"{place.run(case).name}-{_weights(dense)[:12]}.json"
    if not file.exists():
        task, kept = place.tasks[case.task], float(case.budget.partition("=")[2])
        network = checkpoint.read(dense, [word for word in task.trust if ":" in word])
        inner = bool(task.trust)
        plan = torch_pruning_plan.choose(network, kept, lambda n: not inner or n.endswith(".conv1"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(plan.to_json()))
    return file


def _cloud(task: Task, case: Case, place: Place) -> tuple[str, ...]:
    """The cloud model: trained on source once a seed, or as it was published."""
    if not task.cloud:
        return task.model(place.data)
    first = Case("cloud", task.name, "source", case.seed)
    made(first, place)
    return (str(place.run(first)),)


def _start(task: Task, case: Case, place: Place) -> tuple[str, ...]:
    """What a method starts from: the adapted model, or the cloud's where the method adapts by itself."""
    if case.name.partition("+")[0] in ("prune-then-adapt", "two-stage") and task.cloud:
        return _cloud(task, case, place)
    first = adapted(task.name, case.name, case.seed)
    made(first, place)
    return (str(place.run(first)),)


def made(case: Case, place: Place) -> Row:
    """Run a row's command unless its run is finished; an earlier kill is resumed. `failed` holds the last line.

    A finished run of another command, or that began with other weights, is replaced; so is a cut that other code made,
    while networks to begin with stay, for the rows that were cut from them.
    """
    folder, words = place.run(case), command(case, place)
    spoken, note = portable(words, place), folder / "row.json"
    facts: Row = {"command": spoken, "begins_with": _weights(Path(words[2]))}
    if case.stage == "prune":
        facts["code"] = code()
    if records.is_done(folder):
        told = records.read_json(note) or {}
        if {k: told.get(k) for k in facts} == facts:
            return {**records.results(folder), **told}
        shutil.rmtree(folder)
    begun = time.monotonic()
    program = [str(Path(sys.executable).with_name("edgeprune")), *words[1:]]
    program += ["--resume"] if folder.exists() else []
    try:
        out = subprocess.run(program, capture_output=True, text=True, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {LIMIT:.0f} s", "command": spoken}
    if out.returncode != 0:
        lines = out.stderr.strip().splitlines() or ["no message"]
        return {"failed": f"exit {out.returncode}: {lines[-1][:300]}", "command": spoken}
    facts["seconds"] = round(time.monotonic() - begun, 1)
    write_atomically(note, json.dumps(facts).encode())
    return {**records.results(folder), **facts}


@functools.cache
def code() -> str:
    """What tells the package as it is from any other version of it: the first digits of its sources' sha256."""
    root, digest = Path(edgeprune.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _weights(run: Path) -> str:
    """What tells the model of a run from any other: its file's sha256; "" where there is none."""
    file = run / "model.safetensors"
    return artifact.sha256(file) if file.exists() else ""


def portable(words: list[str], place: Place) -> str:
    """The command as it can be typed on another machine, from the repository's root."""
    data = place.data or (Path(os.environ["EDGEPRUNE_DATA"]) if "EDGEPRUNE_DATA" in os.environ else None)
    roots = {place.work: "runs/accuracy"} | ({data: "$EDGEPRUNE_DATA"} if data else {})
    said = []
    for word in words:
        root = next((r for r in roots if Path(word).is_relative_to(r)), None)
        if root is not None:
            said.append(f"{roots[root]}/{Path(word).relative_to(root)}")
        else:
            said.append(Path(word).name if Path(word).is_absolute() else shlex.quote(word))
    return " ".join(said)


_KEPT = (
    "objective", "method", "steps", "macs", "dense_macs", "params", "dense_params", "channels", "dense_channels",
    "agreement", "seconds", "command", "begins_with", "code",
)  # fmt: skip


def row(case: Case, place: Place) -> Row:
    """The facts of one row; accuracies in percent."""
    found = made(case, place)
    facts: Row = {
        "key": case.key,
        "stage": case.stage,
        "task": case.task,
        "name": case.name,
        "seed": case.seed,
    }
    if case.budget:
        facts["budget"] = case.budget
    facts["machine"] = machine_of(place)
    if "failed" in found:
        return {**facts, "failed": found["failed"], "command": found["command"]}
    facts |= {k: found[k] for k in _KEPT if k in found}
    if case.stage == "adapt":
        facts["weights"] = _weights(place.run(case))
    if case.stage == "adapt" and place.tasks[case.task].cloud:
        cloud = Case("cloud", case.task, "source", case.seed)
        facts["cloud_command"] = portable(command(cloud, place), place)
    facts |= {"before": _percent(found["accuracy_before"]), "chosen": _percent(found["accuracy"])}
    watched = _watched(place.run(case))
    if watched:
        # The finished network may beat every validated step: its batch-norm statistics are estimated anew.
        best = max(*watched, found["accuracy"])
        facts |= {"last": _percent(watched[-1]), "oracle": _percent(best)}
        if (chosen := _watched_at(place.run(case), found.get("chosen_step"))) is not None:
            facts["regret"] = _percent(max(watched) - chosen)  # on the same images
    if case.stage == "prune":
        facts["method"] = case.name if case.name == TORCH_PRUNING else found["method"]
        for what in ("images", "images_before", "images_beside"):
            facts[what] = sum(cut.get(what, 0) for cut in found["cuts"])
        # after the first cut, as all that is counted
        facts["images_looked_at"] = sum(cut.get("images_looked_at", 0) for cut in found["cuts"][1:])
        facts["speedup"] = _speedup(
            Path(command(case, place)[2]), place.run(case), place.tasks[case.task].trust
        )
    return facts


def machine_of(place: Place) -> str:
    """What the row was made on; rows of one file come from several days and machines."""
    host = machine.describe()
    cpu, torch = host["cpu"], host["packages"]["torch"]
    return f"{cpu['name']}, {cpu['usable']} cores, {place.device}, torch {torch}, edgeprune {__version__}"


def _watched(run: Path) -> list[float]:
    """Accuracies at the validated steps of the last part of a run's training."""
    lines = [m for m in records.metrics(run) if "accuracy" in m]
    return [m["accuracy"] for m in lines if m["stage"] == lines[-1]["stage"]]


def _watched_at(run: Path, step: int | None) -> float | None:
    """Accuracy at one validated step of the last part, None where it was not looked at."""
    lines = [m for m in records.metrics(run) if "accuracy" in m]
    return next((m["accuracy"] for m in lines if (m["stage"], m["step"]) == (lines[-1]["stage"], step)), None)


def _speedup(dense: Path, slim: Path, trust: tuple[str, ...] = ()) -> dict[str, float] | None:
    """Ratio of median latencies with its 99% interval, on ONNX Runtime, one thread, interleaved; None if it failed.

    Calls that other work interrupted are left out, since rows are often made two at a time.
    """
    program = str(Path(sys.executable).with_name("edgeprune"))
    for run in (dense, slim):
        if not (run / "model.onnx").exists():
            subprocess.run([program, "export", str(run), *trust], capture_output=True, check=False)
        if not (run / "model.onnx").exists():
            return None
    with ort.open(dense / "model.onnx") as one, ort.open(slim / "model.onnx") as other:
        runners = {"dense": one, "slim": other}
        feeds = {name: inputs.synthetic(runner.inputs) for name, runner in runners.items()}
        samples, _ = undisturbed.measure(runners, feeds, seconds=3.0)
    verdict = compare(samples["dense"], samples["slim"])
    return {k: round(getattr(verdict, k), 4) for k in ("speedup", "ci_low", "ci_high")}


def _percent(share: float) -> float:
    return round(100 * share, 2)


def load(file: Path = RESULTS) -> list[Row]:
    """The rows that are there."""
    return list(json.loads(file.read_text())["rows"]) if file.exists() else []


def save(rows: list[Row], file: Path = RESULTS) -> None:
    """Write all rows, with what they were measured on."""
    host = machine.describe()
    facts = {"packages": host["packages"], "cpu": host["cpu"]}
    ordered = sorted(rows, key=lambda r: str(r["key"]))
    write_atomically(file, (json.dumps({**facts, "rows": ordered}, indent=1) + "\n").encode())


def show(cases: list[Case], rows: list[Row]) -> None:
    """Print each row's state and how long it should take: as the same stage of the same task took."""
    for case in cases:
        done = next((r for r in rows if r["key"] == case.key), None)
        alike = [
            r["seconds"]
            for r in rows
            if r.get("seconds") and (r["stage"], r["task"]) == (case.stage, case.task)
        ]
        expected = f"about {sum(alike) / len(alike) / 60:.0f} min" if alike else "time not known yet"
        if done is not None and stale(done, rows):
            done = None
        state = expected if done is None else done.get("failed") or f"{done['chosen']:.1f}%"
        print(f"{'open' if done is None else 'done'}  {case.key:44} {state}")


def stale(row: Row, rows: list[Row]) -> bool:
    """Whether a row was cut from another network than the adapted one that the rows have now."""
    if row["stage"] != "prune" or row["name"].startswith(("prune-then", "two-stage")) or "failed" in row:
        return False
    key = adapted(row["task"], row["name"], row["seed"]).key
    start = next((r for r in rows if r["key"] == key), None)
    return start is not None and start.get("weights") != row.get("begins_with")


def work(cases: list[Case], place: Place, file: Path = RESULTS, *, retry: bool = False) -> None:
    """Run the rows that are open, and write each as it finishes; with `retry` those that failed, too."""
    there = load(file)
    known = [*there, *load()]  # the adapted networks have rows of the second alone
    done = {r["key"] for r in there if not ((retry and "failed" in r) or stale(r, known))}
    for case in (c for c in cases if c.key not in done):
        found = row(case, place)
        rows = [r for r in load(file) if r["key"] != case.key]  # another process may have written meanwhile
        save([*rows, found], file)
        print(case.key, found.get("failed") or f"{found['chosen']:.2f}", flush=True)


def main() -> int:
    """Run the rows that are asked for and open."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("adapt", "prune"))
    parser.add_argument("--task", default="*", help="glob over the tasks")
    parser.add_argument("--only", default="*", help="glob over the names of objectives or methods")
    parser.add_argument("--budget", default="*", help="glob over the budgets, such as macs=0.5")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--list", action="store_true", help="print the rows, their state and expected time")
    parser.add_argument("--retry", action="store_true", help="rows that failed are open again")
    parser.add_argument("--data", type=Path, help="folder made by benchmarks.data")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    seeds = tuple(int(s) for s in args.seeds.split(","))
    wanted = [(args.task, "task"), (args.only, "name"), (args.budget, "budget")]
    cases = [
        c
        for c in (adapting if args.stage == "adapt" else pruning)(seeds)
        if all(fnmatch.fnmatch(getattr(c, field), glob) for glob, field in wanted)
    ]
    rows = load()
    if args.list:
        show(cases, rows)
        return 0
    work(cases, Place(args.data, args.work, args.device), retry=args.retry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
