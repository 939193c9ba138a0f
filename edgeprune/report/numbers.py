"""Facts as text, the same on the terminal and on the page; the words of its key imply the unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_WORDS = {
    "macs": "MACs",
    "onnx": "ONNX",
    "csv": "CSV",
    "json": "JSON",
    "cpu": "CPU",
    "gpu": "GPU",
}

MOST = 8
"""Groups of facts that are still written out one after the other; more are counted."""


def label(key: str) -> str:
    """A key as a heading: "accuracy_before" -> "Accuracy before"."""
    joined = _spelt(key)
    words = joined.split()
    kept = words and (words[0] in _WORDS.values() or re.fullmatch(r"p\d+", words[0]))
    return joined if kept else joined[:1].upper() + joined[1:]


def _spelt(key: str) -> str:
    return " ".join(_WORDS.get(w, w) for w in key.replace("_", " ").split())


def text(item: Any, key: str = "") -> str:
    """A value as a reader wants it, with the unit that its key implies."""
    if item is None:
        return "-"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, int | float):
        return number(item, set(key.lower().replace("_", " ").split()))
    if isinstance(item, Mapping):
        return ", ".join(f"{_spelt(str(k))} {text(v, str(k))}" for k, v in item.items())
    return _several(item, key) if isinstance(item, list | tuple) else str(item)


def _several(items: Sequence[Any], key: str) -> str:
    groups = [item for item in items if isinstance(item, Mapping)]
    if len(groups) > MOST:
        return f"{len(items)} entries"
    return ("; " if groups else ", ").join(text(item, key) for item in items)


def number(item: float, words: set[str]) -> str:
    """A number with the unit that the words of its key imply."""
    if isinstance(item, float) and not math.isfinite(item):
        return str(item)
    if words & {"accuracy", "agreement", "share", "kept"} and isinstance(item, float) and 0 <= item <= 1:
        return f"{100 * item:.1f}%"
    units = {"macs": count, "params": count, "parameters": count, "bytes": size, "ms": milliseconds}
    for word, written in units.items():
        if word in words:
            return written(item)
    if "cosine" in words:
        return f"{item:.7f}"  # four digits would make every one of them 1
    whole = isinstance(item, int) or (item.is_integer() and abs(item) < 1e6)
    return f"{int(item)}" if whole else f"{item:.4g}"


def milliseconds(item: float) -> str:
    """Three digits, and the unit."""
    return f"{item:.3g} ms" if item < 100 else f"{item:.0f} ms"


def count(item: float) -> str:
    """1_230_000 -> "1.23 M"; a fraction below 1 stays a percentage."""
    if 0 < item < 1:
        return f"{100 * item:.1f}%"
    for unit, step in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if item >= step:
            return f"{item / step:.3g} {unit}"
    return f"{item:g}"


def size(item: float) -> str:
    """Bytes in units of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if item < 1024 or unit == "GiB":
            return f"{item:.0f} {unit}" if unit == "B" else f"{item:.1f} {unit}"
        item /= 1024
    raise AssertionError("unreachable")


def verdict(found: Mapping[str, Any] | None) -> str:
    """A comparison of bench in words: "faster: 1.95x (99%: 1.91 to 2.01)"; "" for none."""
    if not found:
        return ""
    level = f"{100 * found.get('confidence', 0.99):.0f}%"
    return (
        f"{found['word']}: {found['speedup']:.2f}x ({level}: {found['ci_low']:.2f} to {found['ci_high']:.2f})"
    )
