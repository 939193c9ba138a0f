"""Everything that training needs to go on, in one safetensors file: never a pickle, and bit-equal on resume."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edgeprune import weights
from edgeprune.errors import CheckpointError, RunError
from edgeprune.run import Run


def write(
    run: Run,
    name: str,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer | None,
    extra: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any],
) -> None:
    """Write `resume/<name>` atomically: modules' states, the optimiser's, named extra tensors, and JSON facts."""
    tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
    for prefix, module in modules.items():
        tensors.update({f"{prefix}/{key}": value for key, value in module.state_dict().items()})
    for prefix, group in extra.items():
        tensors.update({f"{prefix}/{key}": value for key, value in group.items()})
    if optimizer is not None:
        for number, state in optimizer.state_dict()["state"].items():
            tensors.update(
                {
                    f"optimizer/{number}/{key}": torch.as_tensor(value)
                    for key, value in state.items()
                    if value is not None  # the momentum of what had no gradient yet
                }
            )
    leaves = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    run.resume_dir.mkdir(exist_ok=True)
    run.write(f"resume/{name}", save(leaves, {"facts": json.dumps(facts)}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a snapshot; CheckpointError when it is damaged."""
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, json.loads(handle.metadata()["facts"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as err:
        raise CheckpointError(f"{path}: a damaged snapshot ({err}); start again with --force") from err


def finished(run: Run, stage: str, module: nn.Module, objective: nn.Module) -> dict[str, Any] | None:
    """Take up what a finished stage left in weights, objective and random state, and return its facts; None when it has
    not finished.
    """
    done = run.resume_dir / f"{stage}.done"
    if not done.is_file():
        return None
    tensors, facts = read(done)
    weights.take(module, part(tensors, "module"))
    module.eval()
    objective.load_state_dict(part(tensors, "objective"))
    torch.set_rng_state(tensors["random"])
    return facts


def same_images(run: Run, stage: str, names: Mapping[str, Sequence[str]]) -> None:
    """RunError when a stage that goes on has other images than it began with; a stage that begins notes its own."""
    file = run.resume_dir / f"{stage}.images"
    now = {
        kind: [len(some), hashlib.sha256("\n".join(some).encode("utf-8", "surrogateescape")).hexdigest()]
        for kind, some in names.items()
    }
    if not file.is_file():
        run.resume_dir.mkdir(exist_ok=True)
        run.write(f"resume/{file.name}", json.dumps(now).encode())
        return
    was = json.loads(file.read_text())
    for kind, (count, digest) in now.items():
        before, known = was.get(kind, (0, None))
        if known != digest:
            files = "other files" if before == count else f"{count} images"
            raise RunError(
                f"{run.path}: {stage} began with {before} {kind} images, and there are {files} now: "
                "put them back, or start again with --force"
            )


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    start = prefix + "/"
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimiser its state back; the learning rates are the loop's to set."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in part(tensors, "optimizer").items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def forget_metrics(run: Run, stage: str) -> None:
    """Drop what a stage that left no snapshot wrote to metrics.jsonl: it starts again, and so do its lines."""
    file, position = run.path / "metrics.jsonl", 0
    for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
        if json.loads(line).get("stage") == stage:
            run.rewind_metrics(position)
            return
        position += len(line)


@contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back inside the block until the function that is handed over is called, or the block ends.

    It then raises KeyboardInterrupt. A second Ctrl-C does not wait. Nothing changes in a thread, or where Ctrl-C has
    another handler than Python's own.
    """
    asked = 0

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise KeyboardInterrupt

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, ask)
    try:
        yield check
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    check()
