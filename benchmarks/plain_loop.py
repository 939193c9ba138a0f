"""The independent loop of benchmarks/latency.py: nothing of EdgePrune in it. Prints p50 in milliseconds.

python plain_loop.py model.onnx THREADS SECONDS
"""

import statistics
import sys
import time

import numpy as np
import onnxruntime

path, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
image = np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)
times: list[float] = []
warm = time.perf_counter() + seconds / 4
while time.perf_counter() < warm:
    session.run(None, {given.name: image})
end = time.perf_counter() + seconds
while time.perf_counter() < end or len(times) < 5:
    start = time.perf_counter()
    session.run(None, {given.name: image})
    times.append(time.perf_counter() - start)
print(statistics.median(times) * 1e3)
