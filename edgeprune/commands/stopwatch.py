"""How long a network takes on this machine with ONNX Runtime, beside the dense one, interleaved.

What other work interrupts does not count, so a plan can be made on a busy machine. Candidates of a latency budget are
exported without proof (the TorchScript exporter takes a second or two; `edgeprune
export` proves the file that is kept) and measured against a session of the dense network that stays open, so that
what slows the machine for a moment slows both.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeprune.bench import inputs, undisturbed
from edgeprune.bench.compare import Verdict, compare
from edgeprune.bench.measure import Samples
from edgeprune.errors import ModelError
from edgeprune.runtime import ort
from edgeprune.runtime.ort import OrtRunner

SECONDS = 0.5
NARROW, MOST_REPEATS = 0.03, 4  # width of the interval, as a share of the ratio, that is worth stopping at
OPSET = 17


class Stopwatch:
    """Times networks against the dense one; `dense_ms` is its median when this was made. Use as a context.

    interrupted: the largest share of calls, in 0..1, that were left out because other work interrupted them.
    """

    def __init__(self, dense: nn.Module, example: torch.Tensor, threads: int = 1) -> None:
        self.example, self.threads = example[:1].cpu(), threads
        self._stack = contextlib.ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._dense = self._open(dense, "dense")
        found, self.interrupted = undisturbed.measure(
            {"dense": self._dense}, {"dense": self._feeds()}, seconds=SECONDS, threads=threads
        )
        self.dense_ms = float(np.median(found["dense"].latency_s)) * 1e3

    def __call__(self, module: nn.Module) -> float:
        """Milliseconds of a network, as if the machine were as busy as when the dense one took `dense_ms`."""
        return self.dense_ms / self.verdict(module).speedup

    def verdict(self, module: nn.Module) -> Verdict:
        """How much faster than the dense network it is; measured until the interval is narrow, some seconds at most."""
        with self._open(module, "slim") as slim:
            runners = {"dense": self._dense, "slim": slim}
            feeds = {name: self._feeds() for name in runners}
            found: dict[str, Samples] = {}
            for _ in range(MOST_REPEATS):
                more, lost = undisturbed.measure(runners, feeds, seconds=SECONDS, threads=self.threads)
                self.interrupted = max(self.interrupted, lost)
                found = {name: _joined(found.get(name), more[name]) for name in runners}
                verdict = compare(found["dense"], found["slim"], vs="dense")
                if verdict.ci_high - verdict.ci_low <= NARROW * verdict.speedup:
                    break
        return verdict

    def _feeds(self) -> Any:
        return inputs.synthetic(self._dense.inputs)

    def _open(self, module: nn.Module, name: str) -> OrtRunner:
        path = self._folder / f"{name}.onnx"
        quick_export(module, self.example, path)
        opened = ort.open(path, threads=self.threads)
        return self._stack.enter_context(opened) if name == "dense" else opened

    def close(self) -> None:
        """Free the sessions and the files."""
        self._stack.close()

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _joined(one: Samples | None, two: Samples) -> Samples:
    """The rounds of both, one after the other."""
    if one is None:
        return two
    rounds = np.concatenate([one.round, two.round + one.rounds])
    return replace(two, latency_s=np.concatenate([one.latency_s, two.latency_s]), round=rounds)


def quick_export(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write a network as ONNX, batch 1, unproved: to be measured, not used. ModelError when it cannot be."""
    still = copy.deepcopy(module).cpu().float().eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                still,
                (example[:1].cpu(),),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
            )
    except Exception as err:  # an exporter fails in as many ways as there are networks
        line = (str(err).strip().splitlines() or [type(err).__name__])[0][:160]
        raise ModelError(
            f"a latency budget needs the network as ONNX, and the exporter failed: {line}"
        ) from err
    finally:
        logging.disable(level)
        torch.backends.mha.set_fastpath_enabled(fast)
