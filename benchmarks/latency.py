"""Whether `edgeprune bench` can be trusted: its overhead, its repeatability, its agreement with another loop.

    python -m benchmarks.latency [--only GLOB] [--list] [--limit SECONDS] [--seed 0]

Convolutional ONNX networks of about 0.2, 2 and 20 ms (one thread, an idle core) are made here. Rows go to
results/latency.json as they finish; one that is present is skipped.

overhead/*: p50 of `edgeprune bench --runtime ort` over p50 of a bare `InferenceSession.run` loop, in pairs that take
turns, until the median of the pairs' ratios is known to 0.8% (95%). Bar: within 2%.
independent/*: the same against plain_loop.py, which is a process of its own. Bar: within 5%.
repeat/same: ten comparisons of a network with a copy of its file. Bar: "no change" nine times.
repeat/faster: ten comparisons with a network whose bare-loop latency is 8 to 12% lower, which is shown first.
Bar: "faster" nine times.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import edgeprune
from edgeprune.artifact import write_atomically
from edgeprune.bench import machine
from edgeprune.commands.bench import bench
from edgeprune.device_options import BenchOptions

Row = dict[str, Any]
RESULTS = Path(__file__).with_name("results") / "latency.json"
LOOP = Path(__file__).with_name("plain_loop.py")
OVERHEAD, AGREEMENT, ENOUGH = 0.02, 0.05, 9
PRECISE, FEWEST, MOST_S = 0.008, 12, 200.0


@dataclass(frozen=True)
class Net:
    """A stem of stride 2 and `depth` convolutions 3x3 of `width` channels on size/2 x size/2."""

    size: int
    width: int
    depth: int

    def write(self, path: Path, seed: int = 0) -> Path:
        """Write it as ONNX with random weights."""
        draw = np.random.default_rng(seed)
        nodes, weights, last, channels = [], [], "images", 3
        for i in range(self.depth + 1):
            shape = (self.width, channels, 3, 3)
            scale = (2 / (channels * 9)) ** 0.5
            weights.append(
                numpy_helper.from_array((draw.standard_normal(shape) * scale).astype("f4"), f"w{i}")
            )
            step = 2 if i == 0 else 1
            nodes.append(
                helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1] * 4, strides=[step] * 2)
            )
            nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
            last, channels = f"r{i}", self.width
        weights.append(numpy_helper.from_array(draw.standard_normal((self.width, 10)).astype("f4"), "head"))
        nodes += [
            helper.make_node("GlobalAveragePool", [last], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "head"], ["logits"]),
        ]
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, self.size, self.size])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])
        graph = helper.make_graph(nodes, "net", [images], [logits], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, path)
        return path


NETS = {"0.2ms": Net(28, 16, 14), "2ms": Net(56, 32, 12), "20ms": Net(80, 64, 8)}
DENSE, SLIM = Net(56, 32, 12), Net(56, 32, 11)


def bare(path: Path, seconds: float) -> float:
    """Median milliseconds of `InferenceSession.run`, with the settings of bench and nothing around it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    feeds = {given.name: np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)}
    warm = time.perf_counter() + seconds / 4
    times: list[float] = []
    while time.perf_counter() < warm:
        session.run(None, feeds)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def ours(path: Path, seconds: float) -> float:
    """The p50 that the tool says."""
    asked = BenchOptions(
        artifacts=(str(path),), runtime="ort", seconds=seconds, warmup=seconds / 4, runs=5, threads="1"
    )
    return bench(asked).results[0].latency_ms.p50


def paired(one: Callable[[], float], other: Callable[[], float], seed: int) -> Row:
    """Ratio of what two callables say, in pairs of drawn order; see the head of this file."""
    order, began = random.Random(seed), time.monotonic()
    ones: list[float] = []
    others: list[float] = []
    low = high = 0.0
    while len(ones) < FEWEST or (high - low > 2 * PRECISE and time.monotonic() - began < MOST_S):
        jobs = [(one, ones), (other, others)]
        order.shuffle(jobs)
        for job, into in jobs:
            into.append(job())
        low, high = _interval(np.asarray(ones) / np.asarray(others), seed)
    ratio = float(np.median(np.asarray(ones) / np.asarray(others)))
    p50 = {"bench_p50_ms": float(np.median(ones)), "loop_p50_ms": float(np.median(others))}
    return {**p50, "ratio": ratio, "ratio_low": low, "ratio_high": high, "pairs": len(ones)}


def _interval(ratios: np.ndarray[Any, np.dtype[np.float64]], seed: int) -> tuple[float, float]:
    drawn = np.random.default_rng(seed).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def overhead(name: str, folder: Path, seed: int) -> Row:
    path = NETS[name].write(folder / "model.onnx", seed)
    found = paired(lambda: ours(path, 0.5), lambda: bare(path, 0.5), seed)
    return {**found, "bar": f"within {OVERHEAD:.0%}", "met": abs(found["ratio"] - 1) <= OVERHEAD}


def independent(name: str, folder: Path, seed: int) -> Row:
    path = NETS[name].write(folder / "model.onnx", seed)
    words = [sys.executable, str(LOOP), str(path), "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        given, told = process.stdin, process.stdout
        assert given is not None
        assert told is not None

        def loop() -> float:
            given.write("0.5\n")
            given.flush()
            return float(told.readline())

        found = paired(lambda: ours(path, 0.5), loop, seed)
        given.close()
    return {**found, "bar": f"within {AGREEMENT:.0%}", "met": abs(found["ratio"] - 1) <= AGREEMENT}


def repeat(kind: str, folder: Path, seed: int) -> Row:
    dense = DENSE.write(folder / "dense.onnx", seed)
    other = folder / "other.onnx"
    shown: Row = {}
    if kind == "same":
        shutil.copyfile(dense, other)
    else:
        SLIM.write(other, seed)
        loops = paired(lambda: bare(other, 0.3), lambda: bare(dense, 0.3), seed)
        shown = {"bare_loop_lower_by": 1 - loops["ratio"], "bare_loop": loops}
    wanted = "no change" if kind == "same" else "faster"
    verdicts = []
    for i in range(10):
        report = bench(
            BenchOptions(artifacts=(str(other),), baseline=str(dense), runtime="ort", seed=seed + i)
        )
        verdict = report.results[-1].verdict
        assert verdict is not None
        verdicts.append(verdict.to_json() | {"vs": "dense.onnx"})
    hits = sum(v["word"] == wanted for v in verdicts)
    in_range = kind == "same" or 0.08 <= shown["bare_loop_lower_by"] <= 0.12
    bar = f"{wanted!r} at least {ENOUGH} times of 10"
    return {**shown, "said": hits, "bar": bar, "met": hits >= ENOUGH and in_range, "verdicts": verdicts}


CASES: dict[str, Callable[[Path, int], Row]] = {
    **{f"overhead/{n}": lambda p, s, n=n: overhead(n, p, s) for n in NETS},  # type: ignore[misc]
    "repeat/same": lambda p, s: repeat("same", p, s),
    "repeat/faster": lambda p, s: repeat("faster", p, s),
    **{f"independent/{n}": lambda p, s, n=n: independent(n, p, s) for n in NETS},  # type: ignore[misc]
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="*", help="rows whose key matches")
    parser.add_argument("--list", action="store_true", help="print the rows and whether they are there")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), help="seconds after which no row is begun"
    )
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    end = time.monotonic() + words.limit
    rows: dict[str, Row] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for key, case in CASES.items():
        if not fnmatch.fnmatch(key, words.only):
            continue
        if words.list or key in rows or time.monotonic() > end:
            print(key, _said(rows[key]) if key in rows else "-", flush=True)
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            row = case(Path(name), words.seed)
        row |= {"seed": words.seed, "seconds": round(time.monotonic() - began, 1), **_facts(key, words.seed)}
        rows[key] = row
        write_atomically(RESULTS, json.dumps(rows, indent=1, sort_keys=True).encode() + b"\n")
        print(key, _said(row), flush=True)


def _said(row: Row) -> str:
    what = f"ratio {row['ratio']:.4f}" if "ratio" in row else f"{row['said']} of 10"
    return f"{what}; bar {row['bar']}: {'met' if row['met'] else 'MISSED'}"


def _facts(key: str, seed: int) -> Row:
    host = machine.describe()
    kept = {k: host[k] for k in ("os", "kernel", "arch", "python", "cpu", "governor")}
    return {
        "command": f"python -m benchmarks.latency --only {key} --seed {seed}",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"edgeprune": edgeprune.__version__, **{k: v for k, v in host["packages"].items() if v}},
        "machine": {**kept, "load_after": os.getloadavg()},
    }


if __name__ == "__main__":
    main()
