"""`edgeprune inspect`: its examples, and how its result is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "edgeprune inspect runs/prune-resnet50-1",
    "edgeprune inspect slim.onnx --json",
    "edgeprune inspect timm:resnet50 --prunable",
    "edgeprune inspect runs/adapt-resnet50-1 --sensitivity --target camera/ --plot sensitivity.svg",
)


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.inspect` returned, layer by layer, old -> new shape."""
    layers = [{**layer, "shape": _change(layer)} for layer in facts.get("layers", ())]
    rest = {key: item for key, item in facts.items() if key != "layers"}
    page.result(rest, console)
    if layers:
        page.table(layers, console, title="Layers", columns=("name", "shape", "macs"))


def _change(layer: page.Facts) -> str:
    now, dense = _sides(layer.get("shape") or ()), _sides(layer.get("dense") or ())
    return f"{dense} → {now}" if dense else now


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
