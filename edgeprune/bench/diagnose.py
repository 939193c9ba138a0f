"""Why a slim network is not as much faster as it is smaller: sentences with layer names and numbers.

What each sentence stands on is measured: the operators' times of both networks by the runtime's profiler, their MACs
and widths from the ONNX files, the two latencies. The thresholds are ours: they decide what is worth a sentence, never
a number in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeprune.count import LayerCount

Operator = Mapping[str, Any]
TINY_MS = 0.01  # an operator under 10 microseconds is mostly its own launch
LANES = 8  # floats of a 256-bit register; ONNX Runtime's blocked layout and tensor cores pad to this or more
REFORMATS = (
    "ReorderInput",
    "ReorderOutput",
    "Transpose",
    "Reformat",
    "Cast",
    "QuantizeLinear",
    "DequantizeLinear",
)
MULTIPLIES = (
    "Conv",
    "FusedConv",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "ConvTranspose",
    "QLinearConv",
    "NhwcFusedConv",
)
INTENSITY = 4.0  # MACs a byte, below which an operator waits for memory on most processors
SHOWN = 4


@dataclass(frozen=True)
class Side:
    """One network: its latency, its operators as they ran, its counted layers, and p50 by threads where known."""

    name: str
    p50_ms: float
    operators: Sequence[Operator]
    counted: Sequence[LayerCount]
    by_threads: Mapping[int, float] = field(default_factory=dict)
    batch: int = 1

    @property
    def kernels_ms(self) -> float:
        """All operators together."""
        return math.fsum(o["ms_median"] for o in self.operators)

    @property
    def macs(self) -> int:
        """MACs of one image."""
        return sum(c.macs for c in self.counted)


@dataclass(frozen=True)
class Finding:
    """kind: launch, memory, padding, reformat, unpruned, threads or work. layers: names and numbers behind `text`."""

    kind: str
    text: str
    share: float | None = None
    layers: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "layers": [dict(layer) for layer in self.layers]}


def diagnose(dense: Side, slim: Side) -> list[Finding]:
    """What holds `slim` back against `dense`; first what work and time say, then the causes, largest share first."""
    found = [_launch(slim), _memory(slim), _padding(slim), _reformat(dense, slim), _unpruned(dense, slim)]
    found.append(_threads(dense, slim))
    causes = sorted((f for f in found if f is not None), key=lambda f: -(f.share or 0))
    head = _work(dense, slim)
    if not causes:
        causes = [Finding("none", "none of the known causes is large enough to name")]
    return [head, *causes]


def _work(dense: Side, slim: Side) -> Finding:
    work, speed = dense.macs / max(slim.macs, 1), dense.p50_ms / slim.p50_ms
    end = "as much as the work says" if speed >= 0.9 * work else "less than the work says"
    text = (
        f"{slim.name} does {work:.2f}x less work ({dense.macs / 1e6:.1f} M MACs to {slim.macs / 1e6:.1f} M) and is "
        f"{speed:.2f}x faster ({dense.p50_ms:.3g} ms to {slim.p50_ms:.3g} ms): {end}"
    )
    return Finding("work", text)


def _launch(slim: Side) -> Finding | None:
    tiny = [o for o in slim.operators if o["ms_median"] < TINY_MS]
    between = max(slim.p50_ms - slim.kernels_ms, 0.0) / slim.p50_ms
    share = between + math.fsum(o["ms_median"] for o in tiny) / max(slim.kernels_ms, slim.p50_ms)
    if share < 0.2:
        return None
    text = (
        f"launch-bound: {len(tiny)} of {len(slim.operators)} operators take under {1000 * TINY_MS:.0f} µs, and "
        f"{between:.0%} of the time is between operators; fewer channels do not make these shorter, fewer layers do"
    )
    return Finding("launch", text, share, _rows(tiny, slim))


def _memory(slim: Side) -> Finding | None:
    names = _layers(slim)
    slow = []
    for index, operator in enumerate(slim.operators):
        if operator["type"] in REFORMATS or operator["ms_median"] < TINY_MS:
            continue
        layer = names.get(index)
        if layer is None and operator["type"] in MULTIPLIES:
            continue  # its MACs are not known, so nothing can be said of it
        per_byte = (layer.macs * slim.batch if layer else 0) / max(int(operator["bytes"]), 1)
        if per_byte < INTENSITY:
            slow.append((operator, per_byte))
    share = math.fsum(o["ms_median"] for o, _ in slow) / (slim.kernels_ms or 1)
    if share < 0.15:
        return None
    rows = _rows([o for o, _ in slow], slim)
    text = (
        f"memory-bound: {share:.0%} of the time is in {len(slow)} operators that do under {INTENSITY:.0f} MACs a byte "
        f"({_names(rows)}); their time follows activations: cut widths around them or the resolution"
    )
    return Finding("memory", text, share, rows)


def _padding(slim: Side) -> Finding | None:
    names, wasted = _layers(slim), 0.0
    rows: list[dict[str, Any]] = []
    for index, layer in names.items():
        if not layer.weight_shape or len(layer.weight_shape) < 2:
            continue
        shape = layer.weight_shape
        sides = [d for d in (shape[0], shape[1]) if d > LANES]
        padded = math.prod(math.ceil(d / LANES) * LANES / d for d in sides)
        lost = float(slim.operators[index]["ms_median"]) * (1 - 1 / padded)
        if padded > 1.0:
            wasted += lost
            rows.append(
                {"name": layer.name, "widths": f"{shape[1]} -> {shape[0]}", "padded": padded, "lost_ms": lost}
            )
    share = wasted / (slim.kernels_ms or 1)
    if share < 0.03:
        return None
    rows.sort(key=lambda r: -r["lost_ms"])
    told = ", ".join(f"{r['name']} {r['widths']}" for r in rows[:SHOWN])
    text = (
        f"padding: {len(rows)} layers have widths no multiple of {LANES} ({told}); kernels compute the padded "
        f"width, up to {share:.0%} of the time: prune with --multiple {LANES}"
    )
    return Finding("padding", text, share, tuple(rows))


def _reformat(dense: Side, slim: Side) -> Finding | None:
    def part(side: Side) -> tuple[list[Operator], float]:
        chosen = [o for o in side.operators if o["type"] in REFORMATS or "Reformat" in str(o["name"])]
        return chosen, math.fsum(o["ms_median"] for o in chosen) / (side.kernels_ms or 1)

    (chosen, share), (_, before) = part(slim), part(dense)
    if share < 0.05:
        return None
    rows = _rows(chosen, slim)
    text = (
        f"reformat: {share:.0%} of the time changes layouts or types ({len(chosen)} operators, {_names(rows)}), in "
        f"{dense.name} {before:.0%}; widths that the kernels take as they are need none"
    )
    return Finding("reformat", text, share, rows)


def _unpruned(dense: Side, slim: Side) -> Finding | None:
    before = {layer.name: layer.macs for layer in dense.counted}
    names = _layers(slim)
    kept: list[dict[str, Any]] = [
        {"name": layer.name, "ms": float(slim.operators[i]["ms_median"]), "macs": layer.macs}
        for i, layer in names.items()
        if layer.macs and before.get(layer.name) == layer.macs
    ]
    kept.sort(key=lambda r: -r["ms"])
    if not kept or slim.macs == dense.macs:
        return None
    whole = slim.kernels_ms or 1
    share = kept[0]["ms"] / whole
    if share < 0.2:
        return None
    text = (
        f"one unpruned layer dominates: {kept[0]['name']} takes {kept[0]['ms']:.3g} ms, {share:.0%} of the time, and "
        f"is as wide as in {dense.name}; {len(kept)} of {len(names)} layers are uncut"
    )
    return Finding("unpruned", text, share, tuple(kept[:SHOWN]))


def _threads(dense: Side, slim: Side) -> Finding | None:
    shared = sorted(set(dense.by_threads) & set(slim.by_threads))
    if len(shared) < 2:
        return None
    one, many = shared[0], shared[-1]
    gains = [side.by_threads[one] / side.by_threads[many] for side in (dense, slim)]
    if gains[1] > 0.85 * gains[0]:
        return None
    text = (
        f"threads: going from {one} to {many} makes {dense.name} {gains[0]:.2f}x faster and {slim.name} only "
        f"{gains[1]:.2f}x; narrow layers do not feed {many} threads: measure with --threads {one}"
    )
    return Finding("threads", text, 1 - gains[1] / gains[0])


def _layers(side: Side) -> dict[int, LayerCount]:
    """Operator index -> the counted layer it ran: the next whose weight, padded or not, has its shape."""
    waiting, found = list(side.counted), {}
    for index, operator in enumerate(side.operators):
        if operator["type"] not in MULTIPLIES:
            continue
        fit = next((c for c in waiting if _fits(c, operator)), None)
        if fit is not None:
            waiting.remove(fit)
            found[index] = fit
    return found


def _fits(layer: LayerCount, operator: Operator) -> bool:
    """Whether an operator's weight is this layer's: equal, or padded to blocks of 4, 8 or 16; or its name."""
    if str(operator["name"]).removesuffix("_nchwc") == layer.name:
        return True
    ours, theirs = layer.weight_shape, operator.get("weight")
    if ours is None or theirs is None or len(ours) != len(theirs):
        return False
    return list(ours[2:]) == list(theirs[2:]) and all(
        any(math.ceil(a / block) * block == b for block in (1, 4, 8, 16))
        for a, b in zip(ours[:2], theirs[:2], strict=True)
    )


def _rows(operators: Sequence[Operator], side: Side) -> tuple[Mapping[str, Any], ...]:
    """The operators by what they take, with the layer's name where it is known."""
    places = {id(o): i for i, o in enumerate(side.operators)}
    names = _layers(side)
    rows = []
    for operator in sorted(operators, key=lambda o: -o["ms_median"]):
        layer = names.get(places[id(operator)])
        rows.append(
            {
                "name": layer.name if layer else operator["name"],
                "type": operator["type"],
                "ms": operator["ms_median"],
                "share": operator["ms_median"] / (side.kernels_ms or 1),
            }
        )
    return tuple(rows)


def _names(rows: Sequence[Mapping[str, Any]]) -> str:
    told = ", ".join(f"{r['name']} {r['share']:.0%}" for r in rows[:SHOWN])
    return told + (", ..." if len(rows) > SHOWN else "")
