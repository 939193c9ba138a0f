"""Plots as inline SVG, drawn by hand: they take the page's colours, light or dark, and weigh a few kilobytes.

Every plot has a title and a sentence for those who do not see it; colour is never the only difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]
WIDTH, HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24


@dataclass(frozen=True)
class Dot:
    """A labelled point; `high` draws it filled."""

    x: float
    y: float
    text: str
    high: bool = False


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def curve(points: Sequence[Point], label: str, mark: float | None = None) -> Markup:
    """A line over steps; `mark` is the step that was chosen. Points that are not finite are left out."""
    kept = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not kept:
        return Markup("")
    xs, ys = zip(*kept, strict=True)
    across, up = _scales(xs, ys)
    line = " ".join(f"{across(x)},{up(y)}" for x, y in _thinned(kept))
    parts = [_axes(across, up), f'<polyline class="line" points="{line}"/>']
    chosen = f"; step {_short(mark)} was chosen" if mark is not None and xs[0] <= mark <= xs[-1] else ""
    if chosen and mark is not None:
        x = across(mark)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    ends = [f"{_short(y)} at step {_short(x)}" for x, y in (kept[0], kept[-1])]
    sentence = f"{label}: from {ends[0]} to {ends[1]}{chosen}"
    return _svg(parts, sentence)


def scatter(dots: Sequence[Dot], label: str) -> Markup:
    """Labelled points, such as accuracy against MACs."""
    across, up = _scales([d.x for d in dots], [d.y for d in dots], pad=0.12)
    parts = [_axes(across, up)]
    for number, dot in enumerate(sorted(dots, key=lambda dot: dot.x)):
        x, y = across(dot.x), up(dot.y)
        left = x < WIDTH * 0.6
        drop = 4 if len(dots) == 1 else -8 if number % 2 else 16  # names of neighbours above and below
        parts.append(f'<circle class="{"dot high" if dot.high else "dot"}" cx="{x}" cy="{y}" r="4"/>')
        parts.append(
            f'<text class="name" x="{x + (8 if left else -8)}" y="{y + drop}" '
            f'text-anchor="{"start" if left else "end"}">{escape(dot.text)}</text>'
        )
    said = "; ".join(f"{d.text}: {_short(d.y)} at {_short(d.x)}" for d in dots)
    return _svg(parts, f"{label}: {said}")


def _scales(xs: Iterable[float], ys: Iterable[float], pad: float = 0.0) -> tuple[_Scale, _Scale]:
    across = _Scale(*_range(xs, pad), _LEFT, WIDTH - _RIGHT)
    return across, _Scale(*_range(ys, max(pad, 0.05)), HEIGHT - _BOTTOM, _TOP)


def _range(values: Iterable[float], pad: float) -> tuple[float, float]:
    found = list(values)
    low, high = min(found), max(found)
    least = abs(high) / 50 or 1.0  # a smaller difference is drawn as what it is: none
    if high - low < least:
        middle = (low + high) / 2
        return middle - least, middle + least
    room = pad * (high - low)
    return low - room, high + room


def _axes(across: _Scale, up: _Scale) -> str:
    base = HEIGHT - _BOTTOM
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{base}H{WIDTH - _RIGHT}"/>']
    for value in _ticks(up, 5):
        y = up(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4}" text-anchor="end">{_short(value)}</text>')
    for value in _ticks(across, 4):
        parts.append(f'<text x="{across(value)}" y="{base + 16}" text-anchor="middle">{_short(value)}</text>')
    return "".join(parts)


def _ticks(scale: _Scale, most: int) -> list[float]:
    """Round numbers inside the range: multiples of 1, 2 or 5 times a power of ten."""
    span = scale.high - scale.low
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) <= most)
    first = math.ceil(scale.low / step)
    return [k * step for k in range(first, math.floor(scale.high / step) + 1)]


def _thinned(points: Sequence[Point], most: int = 400) -> Sequence[Point]:
    every = max(1, math.ceil(len(points) / most))
    return [*points[::every], *([points[-1]] if (len(points) - 1) % every else [])]


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _svg(parts: Sequence[str], sentence: str) -> Markup:
    start = f'<svg role="img" aria-label="{escape(sentence)}" viewBox="0 0 {WIDTH} {HEIGHT}">'
    return Markup("".join((start, *parts, "</svg>")))
