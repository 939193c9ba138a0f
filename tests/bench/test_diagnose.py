"""Each cause is named where it is planted, with its layers, and not where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeprune.bench.diagnose import Side, diagnose
from edgeprune.count import LayerCount


def conv(
    name: str, inputs: int, outputs: int, ms: float, *, pixels: int = 784, block: int = 8
) -> tuple[Any, Any]:
    """A counted 3x3 convolution and the operator that ran it, whose weight is padded to `block`."""
    up = [-(-d // block) * block for d in (outputs, inputs)]
    operator = {
        "name": f"{name}/relu",
        "type": "Conv",
        "ms_median": ms,
        "weight": [*up, 3, 3],
        "bytes": 4 * (pixels * (inputs + outputs) + inputs * outputs * 9),
    }
    macs = pixels * inputs * outputs * 9
    return LayerCount(
        name, "Conv", macs, inputs * outputs * 9, (outputs, inputs, 3, 3), (1, outputs)
    ), operator


def other(name: str, kind: str, ms: float) -> tuple[None, Any]:
    return None, {"name": name, "type": kind, "ms_median": ms, "weight": None, "bytes": 100_000}


def side(name: str, parts: Sequence[tuple[Any, Any]], between: float = 0.0, **more: Any) -> Side:
    operators = [o for _, o in parts]
    p50 = sum(o["ms_median"] for o in operators) + between
    return Side(name, p50, operators, [c for c, _ in parts if c], **more)


DENSE = side("dense", [conv("a", 64, 64, 1.0), conv("b", 64, 64, 1.0), conv("c", 64, 64, 1.0)])


def kinds(slim: Side, dense: Side = DENSE) -> dict[str, Any]:
    return {f.kind: f for f in diagnose(dense, slim)}


def test_a_cut_that_pays_has_no_cause() -> None:
    found = kinds(side("slim", [conv(n, 32, 32, 0.25) for n in "abc"]))
    assert set(found) == {"work", "none"}
    assert "4.00x less work" in found["work"].text
    assert "4.00x faster" in found["work"].text
    assert found["work"].text.endswith("as much as the work says")


def test_many_tiny_operators_are_launch_bound() -> None:
    tiny = [conv(n, 32, 32, 0.005) for n in "abc"]
    found = kinds(side("slim", tiny, between=0.02))
    assert "3 of 3 operators take under 10 µs" in found["launch"].text
    assert "57% of the time is between operators" in found["launch"].text
    assert "launch" not in kinds(side("slim", [conv(n, 32, 32, 0.25) for n in "abc"], between=0.05))


def test_operators_that_move_data_are_memory_bound() -> None:
    parts = [conv("a", 32, 32, 0.2), other("add", "Add", 0.15), other("pool", "MaxPool", 0.15)]
    found = kinds(side("slim", parts))["memory"]
    assert found.text.startswith("memory-bound: 60% of the time is in 2 operators")
    assert [layer["name"] for layer in found.layers] == ["add", "pool"]


def test_widths_between_multiples_are_padding_with_the_layers_named() -> None:
    found = kinds(side("slim", [conv("a", 33, 33, 0.4), conv("b", 32, 32, 0.2)]))["padding"]
    assert "a 33 -> 33" in found.text
    assert [layer["name"] for layer in found.layers] == ["a"]
    assert found.layers[0]["padded"] == (40 / 33) ** 2
    assert found.share is not None
    assert abs(found.share - 0.4 * (1 - (33 / 40) ** 2) / 0.6) < 1e-9
    assert "padding" not in kinds(side("slim", [conv(n, 32, 32, 0.25) for n in "abc"]))


def test_changes_of_layout_are_reformat_against_the_dense_share() -> None:
    parts = [conv("a", 32, 32, 0.3), other("in", "ReorderInput", 0.05), other("out", "Transpose", 0.05)]
    found = kinds(side("slim", parts))["reformat"]
    assert "25% of the time changes layouts" in found.text
    assert "in dense 0%" in found.text
    assert "memory" not in kinds(side("slim", parts)), "a change of layout is told once"


def test_one_uncut_layer_that_dominates_is_named() -> None:
    found = kinds(side("slim", [conv("a", 64, 64, 1.0), conv("b", 32, 32, 0.25), conv("c", 32, 32, 0.25)]))
    assert found["unpruned"].text.startswith("one unpruned layer dominates: a takes 1 ms, 67% of the time")
    assert "1 of 3 layers are uncut" in found["unpruned"].text
    assert "unpruned" not in kinds(DENSE)


def test_threads_that_help_the_dense_network_alone() -> None:
    dense = side("dense", [conv("a", 64, 64, 1.0)], by_threads={1: 1.0, 2: 0.5})
    slim = side("slim", [conv("a", 32, 32, 0.25)], by_threads={1: 0.25, 2: 0.25})
    found = kinds(slim, dense)["threads"]
    assert "going from 1 to 2 makes dense 2.00x faster and slim only 1.00x" in found.text
    even = side("slim", [conv("a", 32, 32, 0.25)], by_threads={1: 0.25, 2: 0.125})
    assert "threads" not in kinds(even, dense)


def test_the_largest_cause_comes_first() -> None:
    parts = [conv("a", 33, 33, 0.4), other("add", "Add", 0.6)]
    found = [f.kind for f in diagnose(DENSE, side("slim", parts))]
    assert found == ["work", "memory", "padding"]
