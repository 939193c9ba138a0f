"""The independent loop of benchmarks/latency.py, a process of its own with nothing of EdgePrune in it.

python plain_loop.py model.onnx THREADS; for each line of seconds on stdin it prints p50 in milliseconds.
"""

import statistics
import sys
import time

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
image = np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)
for line in sys.stdin:
    times: list[float] = []
    warm = time.perf_counter() + float(line) / 4
    while time.perf_counter() < warm:
        session.run(None, {given.name: image})
    end = time.perf_counter() + float(line)
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        session.run(None, {given.name: image})
        times.append(time.perf_counter() - start)
    print(statistics.median(times) * 1e3, flush=True)
