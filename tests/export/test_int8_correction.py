"""Biases that bring means back, layers put back in float, and the walk that both are made by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeprune.errors import ModelError
from edgeprune.export import bias, int8, sensitive, walk

from .small_graphs import images, network

Made = tuple[onnx.ModelProto, onnx.ModelProto]
Changed = Callable[[onnx.ModelProto], Any]
F64 = NDArray[np.float64]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The float graph and its Q/DQ form, ranges by minmax."""
    folder = tmp_path_factory.mktemp("made")
    make = int8.Quantiser(
        onnx.load(network(folder / "model.onnx")), int8.calibration_images([images()]), folder
    )
    return make.reference, make("minmax")


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def at(model: onnx.ModelProto, names: list[str], given: Any) -> list[F64]:
    """What the layers of these names put out, in one run of the whole graph."""
    wide = copy(model)
    ends = [next(n.output[0] for n in wide.graph.node if n.name == name) for name in names]
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.ValueInfoProto(name=end) for end in ends)
    rows: list[F64] = walk.session(wide).run(ends, {"images": given})
    return [np.asarray(row, np.float64) for row in rows]


LAYERS = ["first", "second", "third", "head"]


def test_a_walk_sees_what_a_run_of_the_whole_graph_gives(made: Made) -> None:
    for model in made:
        seen = [(s.node.name, np.concatenate(s.outputs)) for s in walk.layers(model, LAYERS, [images()])]
        assert [name for name, _ in seen] == LAYERS
        for (_, walked), whole in zip(seen, at(model, LAYERS, images()), strict=True):
            # A value halfway between two steps may fall either way: single places differ by a step, no more.
            away = np.abs(walked - whole) > 1e-5
            assert away.mean() < (0.05 if model is made[1] else 0.0001)
            assert np.abs(walked - whole).max() < 0.05


def test_layers_after_a_change_see_it(made: Made) -> None:
    model = copy(made[0])
    last = None
    for stop in walk.layers(model, LAYERS, [images()]):
        if stop.node.name == "first":
            walk.replace(model, "w1", 2 * walk.constant(model, "w1"))
            stop.again()
        last = stop.outputs[0]
    whole = at(model, ["head"], images())[0]
    assert last is not None
    np.testing.assert_allclose(last, whole, rtol=1e-5)
    assert np.abs(whole - at(made[0], ["head"], images())[0]).max() > 0.1


def test_means_come_back(made: Made) -> None:
    """Weights are moved as though rounding had a drift; every channel's mean is then the float graph's again."""
    reference, model = made[0], copy(made[1])
    name = next(
        t.name for t in model.graph.initializer if t.name.startswith("w2") and t.dims[1:] == [8, 3, 3]
    )
    moved = np.clip(walk.constant(model, name).astype(int) + 6, -127, 127).astype(np.int8)
    walk.replace(model, name, moved)
    given = images(32)

    def gaps(graph: onnx.ModelProto) -> list[float]:
        pairs = zip(at(graph, LAYERS, given), at(reference, LAYERS, given), strict=True)
        return [
            float(np.abs((a - b).mean(tuple(i for i in range(a.ndim) if i != 1))).max()) for a, b in pairs
        ]

    before = gaps(model)
    assert bias.correct(model, reference, [given]) == 4
    after = gaps(model)
    assert before[1] > 0.05
    assert max(after) < 1e-5, "each layer is corrected under what corrected layers before it give"
    onnx.checker.check_model(model)


def test_another_graph_is_refused(made: Made) -> None:
    other = copy(made[0])
    next(n for n in other.graph.node if n.name == "second").name = "other"
    with pytest.raises(ModelError, match="layer other of the float graph is not in the quantised one"):
        bias.correct(copy(made[1]), other, [images(8)])


def test_every_layer_back_in_float_is_the_float_graph(made: Made) -> None:
    reference, model = made
    back = sensitive.leave(model, reference, [*LAYERS, "skip"])
    assert not [n for n in back.graph.node if "Quantize" in n.op_type]
    whole, again = (at(g, ["head"], images())[0] for g in (reference, back))
    np.testing.assert_array_equal(whole, again)


def test_one_layer_back_in_float_leaves_the_others(made: Made) -> None:
    back = sensitive.leave(made[1], made[0], ["second"])
    facts = int8.census(back)
    assert (facts["quantised_layers"], facts["lone_pairs"]) == (3, 0)
    second = next(n for n in back.graph.node if n.name == "second")
    held = {t.name: numpy_helper.to_array(t) for t in back.graph.initializer}
    assert held[second.input[1]].dtype == np.float32
    assert int8.census(made[1])["quantised_layers"] == 4, "the given graph stays as it is"


def test_the_layer_with_a_spoilt_weight_is_the_most_sensitive(made: Made) -> None:
    reference, model = made[0], copy(made[1])
    name = next(
        t.name for t in model.graph.initializer if t.name.startswith("w3") and t.dims[1:] == [8, 3, 3]
    )
    walk.replace(model, name, walk.constant(model, name)[:, ::-1].copy())
    errors = sensitive.errors(model, reference, LAYERS, [images()])
    assert max(errors, key=lambda layer: errors[layer]) == "third"
    assert errors["third"] > 0.5
    assert 0 < errors["first"] < 0.1
