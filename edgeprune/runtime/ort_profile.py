"""What each operator takes, by ONNX Runtime's own profiler: the graph as it runs, after fusion and layout changes.

The profiler adds some microseconds around each operator, so the sum of these times is not the latency; it tells where
the time goes. One dictionary an operator: name, type, ms_median, pct (of the sum, 0..100), channels_in, channels_out
(None where the shape has no channel axis), weight (its shape as the kernel holds it, or None), bytes (read and written,
weights included), provider.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import ModelError
from edgeprune.runtime import ort
from edgeprune.runtime.runner import Feeds

WARMUP = 5
_SUFFIX = "_kernel_time"


def layers(path: Path, settings: Mapping[str, Any], feeds: Feeds, runs: int) -> tuple[dict[str, Any], ...]:
    """Operators of a file under a runner's `settings`, medians over `runs` runs after a warm-up."""
    import onnxruntime

    provider = str(settings["provider"])
    options = ort._options(onnxruntime, int(settings["threads"]), provider, bool(settings["spin_wait"]))
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        for _ in range(WARMUP + runs):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    return of_events(events, WARMUP)


def of_events(events: Sequence[Mapping[str, Any]], skip: int) -> tuple[dict[str, Any], ...]:
    """Operators of a profile in the order they ran; the first `skip` runs are left out. ModelError for none."""
    times: dict[str, list[float]] = {}
    facts: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_SUFFIX):
            name = str(event["name"]).removesuffix(_SUFFIX)
            key = f"{name}#{event['args'].get('node_index', '')}"
            times.setdefault(key, []).append(float(event["dur"]) * 1e-3)
            facts[key] = event["args"]
    medians = {key: statistics.median(took[skip:] or took) for key, took in times.items()}
    if not medians:
        raise ModelError(
            "the profile of ONNX Runtime names no operator; this provider does not tell its layers"
        )
    total = sum(medians.values()) or 1.0
    return tuple(
        _layer(key.rpartition("#")[0], facts[key], ms, 100 * ms / total) for key, ms in medians.items()
    )


def _layer(name: str, args: Mapping[str, Any], ms: float, percent: float) -> dict[str, Any]:
    moved = sum(int(args.get(k) or 0) for k in ("activation_size", "parameter_size", "output_size"))
    return {
        "name": name,
        "type": str(args.get("op_name", "")),
        "ms_median": ms,
        "pct": percent,
        "channels_in": _channels(args.get("input_type_shape")),
        "channels_out": _channels(args.get("output_type_shape")),
        "weight": _shape(args.get("input_type_shape"), 1),
        "bytes": moved,
        "provider": str(args.get("provider", "")),
    }


def _channels(tensors: Any) -> int | None:
    """Channels of the first tensor of [{"float": [1, 64, 7, 7]}]: axis 1 of images, the last of matrices."""
    shape = _shape(tensors, 0) or []
    return None if len(shape) < 2 else shape[1] if len(shape) > 3 else shape[-1]


def _shape(tensors: Any, index: int) -> list[int] | None:
    """The shape of one tensor of [{"float": [1, 64, 7, 7]}, ...]; None when there is none."""
    if not tensors or len(tensors) <= index or not tensors[index]:
        return None
    return [int(d) for d in next(iter(tensors[index].values()))] or None
