"""FP16 and INT8 files against the float32 one: overflow, placement, calibration, layers left in float, the gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from edgeprune import artifact
from edgeprune.errors import BrokenModel, ModelError, ParityFailed, UsageError
from edgeprune.export import fp16, int8, precision, ranges
from edgeprune.export import parity as parities
from edgeprune.runtime import metadata, ort

from .small_graphs import images, network


def test_fp16_is_typed_and_equal(tmp_path: Path) -> None:
    source = network(tmp_path / "model.onnx")
    made = precision.lower(source, tmp_path / "model.fp16.onnx", "fp16", images=[images()])
    model = onnx.load(made.path)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert set(kinds.values()) == {TensorProto.FLOAT16}
    assert [made.inputs[0].dtype, made.outputs[0].dtype] == ["float32", "float32"]
    assert made.meta["parity"]["flips"] == 0
    assert 0 < made.meta["parity"]["relative"] < 5e-3
    assert made.meta["lowered"]["overflowing"] == {}
    assert made.path.stat().st_size < 0.6 * source.stat().st_size


def test_the_file_says_what_it_is_and_where_it_comes_from(tmp_path: Path) -> None:
    source = network(tmp_path / "model.onnx")
    made = precision.lower(source, tmp_path / "model.int8.onnx", "int8", images=[images()])
    parent = artifact.sha256(source)
    side = artifact.read(made.path)
    assert side.parents == (parent,)
    assert side.meta["precision"] == "int8"
    with ort.open(made) as runner:
        facts = metadata.from_props(runner.metadata)
    assert facts["precision"] == "int8"
    assert facts["parents"] == [parent]


def test_overflow_is_caught_from_the_ranges(tmp_path: Path) -> None:
    source = network(tmp_path / "model.onnx", loud=3e5)
    model = onnx.load(source)
    top = ranges.record(model, [images()], tmp_path)
    assert top["a"] > 65504
    made, facts = fp16.convert(model, [images()], tmp_path)
    assert {"first", "relu", "second", "skip", "third"} <= set(facts["overflowing"])
    assert facts["overflowing"]["first"].startswith("activation a reaches")
    kept = {t.name for t in made.graph.initializer if t.data_type == TensorProto.FLOAT}
    assert kept == {"w1", "w2", "w3"}
    found = precision.lower(source, tmp_path / "model.fp16.onnx", "fp16", images=[images()])
    assert found.meta["parity"]["nan"] == 0
    assert found.meta["parity"]["flips"] == 0


def test_between_two_float32_nodes_nothing_is_float16(tmp_path: Path) -> None:
    """ONNX Runtime's converter casts there and back, where the value would overflow on a GPU; its CPU hides it."""
    made, _ = fp16.convert(onnx.load(network(tmp_path / "model.onnx", loud=3e5)), [images()], tmp_path)
    casts = [n for n in made.graph.node if n.op_type == "Cast"]
    assert len(casts) == 2, "float16 begins behind `third` and ends at the output"


def test_what_is_not_equal_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = network(tmp_path / "model.onnx")
    real = fp16.convert

    def wrong(*given: Any) -> Any:
        model, facts = real(*given)
        head = next(t for t in model.graph.initializer if t.name == "w4")
        head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), "w4"))
        return model, facts

    monkeypatch.setattr(fp16, "convert", wrong)
    expected = r"model\.fp16\.onnx is not equal to model\.onnx: 40 of 40 answers flipped where 0 may \(fp16"
    with pytest.raises(ParityFailed, match=expected):
        precision.lower(source, tmp_path / "model.fp16.onnx", "fp16", images=[images()])
    assert not (tmp_path / "model.fp16.onnx").exists()
    assert (tmp_path / "model.fp16.failed.onnx").is_file()
    report = json.loads((tmp_path / "model.fp16.failed.onnx.parity.json").read_text())
    assert report["n"] == 40


def test_range_of_a_nan_is_infinite(tmp_path: Path) -> None:
    model = onnx.load(network(tmp_path / "model.onnx"))
    bad = numpy_helper.to_array(model.graph.initializer[1]).copy()
    bad[0, 0, 0, 0] = np.nan
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(bad, "w2"))
    top = ranges.record(model, [images()], tmp_path)
    assert top["c"] == np.inf
    assert np.isfinite(top["a"])
    assert "second" in ranges.overflowing(model, top, fp16.LIMIT)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> artifact.Artifact:
    folder = tmp_path_factory.mktemp("q")
    source = network(folder / "model.onnx")
    return precision.lower(source, folder / "model.int8.onnx", "int8", images=[images()])


def test_int8_is_what_tensorrt_takes(quantised: artifact.Artifact) -> None:
    model = onnx.load(quantised.path)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = held[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    weights = [held[n.input[0]] for n in pairs if n.input[0] in held]
    assert {w.dtype for w in weights} == {np.dtype(np.int8)}
    conv = next(n for n in pairs if n.input[0].startswith("w1"))
    assert held[conv.input[1]].shape == (8,)
    assert [o.domain for o in model.opset_import] == [""]


def test_int8_counts_and_choice(quantised: artifact.Artifact) -> None:
    facts = quantised.meta["lowered"]
    assert (facts["layers"], facts["quantised_layers"], facts["left_in_float"]) == (4, 4, [])
    assert set(facts["tried"]) == {"minmax", "entropy", "percentile"}
    best = facts["tried"][facts["calibration"]]
    assert best["relative"] == min(
        t["relative"] for t in facts["tried"].values() if t["flips"] == best["flips"]
    )
    assert quantised.meta["parity"]["flips"] == 0
    assert facts["lone_pairs"] == 0


def test_nothing_is_quantised_before_a_relu_or_at_the_output(quantised: artifact.Artifact) -> None:
    graph = onnx.load(quantised.path).graph
    maker = {o: n for n in graph.node for o in n.output}
    relu = next(n for n in graph.node if n.op_type == "Relu")
    assert maker[relu.input[0]].op_type == "Conv"
    assert maker["logits"].op_type == "Gemm"


def test_only_the_skip_branch_of_an_addition_is_quantised(quantised: artifact.Artifact) -> None:
    graph = onnx.load(quantised.path).graph
    maker = {o: n for n in graph.node for o in n.output}
    add = next(n for n in graph.node if n.op_type == "Add")
    assert sorted(maker[i].op_type for i in add.input) == ["Conv", "DequantizeLinear"]


def test_layers_are_left_in_float_as_few_as_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def at(flips: int) -> Any:
        return parities.Parity(100, 1.0, 0.1, 0.1, 0.9, flips, 0, 0, 0, ())

    asked: list[int] = []

    def run(count: int) -> Any:
        asked.append(count)
        return at(max(0, 7 - count))

    loose = precision.INT8  # one of 100 may flip: six layers
    strict = replace(loose, flips=0.0)
    assert precision._fewest(run, 20, (loose,))[0] == 6
    assert len(asked) < 7
    assert precision._fewest(run, 20, (strict, loose))[0] == 7
    assert precision._fewest(lambda k: at(max(1, 7 - k)), 20, (strict, loose))[0] == 6, (
        "the strict one is out of reach"
    )
    assert precision._fewest(lambda _: at(50), 20, (strict, loose))[0] == 19


@given(st.integers(2, 90), st.integers(1, 100))
def test_no_number_of_float_layers_is_tried_twice_and_fewer_do_not_pass(most: int, needed: int) -> None:
    asked: list[int] = []

    def run(count: int) -> Any:
        asked.append(count)
        return parities.Parity(100, 1.0, 0.1, 0.1, 0.9, 0 if count >= needed else 50, 0, 0, 0, ())

    found = precision._fewest(run, most, (replace(precision.INT8, flips=0.0), precision.INT8))[0]
    assert found == (max(1, needed) if needed <= most - 1 else most - 1)
    assert len(asked) == len(set(asked))


def test_sensitive_layers_stay_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Harm is set by the test: only a graph that leaves `second` passes."""
    source = network(tmp_path / "model.onnx")
    real = parities.against

    def against(expected: Any, candidate: Any, given: Any, gate: Any) -> Any:
        graph = onnx.load(candidate_file(tmp_path)).graph
        maker = {o: n for n in graph.node for o in n.output}
        second = next(n for n in graph.node if n.name == "second")
        hurt = maker.get(second.input[1]) is not None
        found = real(expected, candidate, given, gate)
        return replace(found, flips=found.n if hurt else 0)

    monkeypatch.setattr(parities, "against", against)
    made = precision.lower(
        source, tmp_path / "model.int8.onnx", "int8", images=[images()], calibration="minmax"
    )
    facts = made.meta["lowered"]
    assert facts["left_in_float"][-1] == "second", (
        "the most sensitive first, and none after the one that passes"
    )
    harms = list(facts["sensitivity"].values())
    assert harms == sorted(harms, reverse=True)
    assert list(facts["sensitivity"]) == facts["left_in_float"]
    assert facts["quantised_layers"] == 4 - len(facts["left_in_float"])


def candidate_file(folder: Path) -> Path:
    return next(folder.glob(".export-*/candidate.onnx"))


def test_fixed_batch_is_calibrated_and_proved(tmp_path: Path) -> None:
    source = network(tmp_path / "model.onnx", batch=4)
    for word in ("fp16", "int8"):
        made = precision.lower(source, tmp_path / f"model.{word}.onnx", word, images=[images(10)])
        assert made.inputs[0].shape[0] == 4
        assert made.meta["parity"]["n"] == 10


def test_words_and_files_that_make_no_sense(tmp_path: Path) -> None:
    source = network(tmp_path / "model.onnx")
    out = tmp_path / "out.onnx"
    with pytest.raises(UsageError, match="--precision int4: expected fp32, fp16, int8"):
        precision.lower(source, out, "int4")
    with pytest.raises(UsageError, match="--calibration mean: expected auto, minmax, entropy, percentile"):
        precision.lower(source, out, "int8", images=[images()], calibration="mean")
    with pytest.raises(ParityFailed, match="calibrated on images and received none; give --images DIR"):
        precision.lower(source, out, "int8")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(source.read_bytes()[:3000])
    with pytest.raises(BrokenModel, match="not a whole ONNX file") as caught:
        precision.lower(cut, out, "fp16")
    assert "\n" not in str(caught.value)
    precision.lower(source, tmp_path / "q.onnx", "int8", images=[images()], calibration="minmax")
    with pytest.raises(ModelError, match="is quantised already; give the float32 file"):
        precision.lower(tmp_path / "q.onnx", out, "fp16")
    assert not out.exists()


def test_calibration_images_are_spread() -> None:
    chosen = int8.calibration_images([images(100), images(50)], most=64)
    assert len(chosen) == 50
    assert chosen[0].shape == (1, 3, 16, 16)
