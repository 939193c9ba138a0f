"""Ends in the graph: the same answers from pixels, probabilities that are softmax's, classes that are the largest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from edgeprune import artifact
from edgeprune.cli.app import main
from edgeprune.errors import DataError, ModelError, ParityFailed, UsageError
from edgeprune.export import ends as ending
from edgeprune.export import precision
from edgeprune.export.ends import Ends
from edgeprune.images import Preprocess, normalise
from edgeprune.runtime import answers, metadata, ort

from .small_graphs import SIZE, images, network

PRE = Preprocess((SIZE, SIZE), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
PIXELS = np.random.default_rng(3).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)


def source(folder: Path, batch: int | str = "batch") -> Path:
    """A float32 file that says its preprocessing and classes."""
    path = network(folder / "model.onnx", batch=batch)
    model = onnx.load(path)
    for key, text in metadata.to_props({"preprocess": PRE.to_json(), "classes": list("abcde")}).items():
        model.metadata_props.add(key=key, value=text)
    onnx.save(model, path)
    return path


def plain_logits(path: Path) -> Any:
    with ort.open(path) as runner:
        return answers.outputs(runner, normalise(PIXELS, PRE))["logits"].astype(np.float64)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("batch", ["batch", 1])
def test_pixels_give_what_normalised_images_give(tmp_path: Path, layout: str, batch: Any) -> None:
    given = source(tmp_path, batch)
    made = ending.attach(given, tmp_path / "model.e2e.onnx", Ends(layout))
    sizes = (SIZE, SIZE, 3) if layout == "nhwc" else (3, SIZE, SIZE)
    assert made.inputs == (artifact.TensorSpec("images", (batch, *sizes), "uint8"),)
    assert made.parents == (artifact.sha256(given),)
    fed = PIXELS if layout == "nhwc" else PIXELS.transpose(0, 3, 1, 2)
    with ort.open(made) as runner:
        found = answers.outputs(runner, fed)["logits"]
        held = metadata.from_props(runner.metadata)
    np.testing.assert_allclose(found, plain_logits(given), rtol=1e-4, atol=1e-4)
    assert held["preprocess"]["layout"] == layout
    # What reads images for the file hands on pixels, without knowing of ends.
    np.testing.assert_array_equal(normalise(PIXELS, Preprocess.from_json(held["preprocess"])), fed)


def test_classes_and_scores_are_softmax_sorted(tmp_path: Path) -> None:
    given = source(tmp_path)
    logits = plain_logits(given)
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    shares = exponents / exponents.sum(1, keepdims=True)
    soft = ending.attach(given, tmp_path / "soft.onnx", Ends("nhwc", softmax=True))
    top = ending.attach(given, tmp_path / "top.onnx", Ends("nhwc", softmax=True, top_k=3))
    order = np.argsort(-shares, axis=1)[:, :3]
    with ort.open(soft) as a, ort.open(top) as b, ort.open(given) as c:
        np.testing.assert_allclose(answers.outputs(a, PIXELS)["probabilities"], shares, atol=1e-5)
        for runner, fed in ((a, PIXELS), (b, PIXELS), (c, normalise(PIXELS, PRE))):
            classes, scores = answers.ranked(runner, fed, 3)
            np.testing.assert_array_equal(classes, order)
            np.testing.assert_allclose(scores, np.take_along_axis(shares, order, 1), atol=1e-5)
        assert answers.ranked(b, PIXELS, 5)[0].shape == (6, 3)


@pytest.mark.parametrize("word", ["fp16", "int8"])
def test_lowered_files_take_ends(tmp_path: Path, word: str) -> None:
    lowered = precision.lower(source(tmp_path), tmp_path / f"m.{word}.onnx", word, images=[images()])
    made = ending.attach(lowered.path, tmp_path / "m.e2e.onnx", Ends("nhwc", top_k=2), pixels=[PIXELS])
    assert made.meta["precision"] == word
    assert made.meta["ends"]["parity"]["n"] == 6


def test_what_nothing_reads_is_not_written(tmp_path: Path) -> None:
    given = source(tmp_path)
    model = onnx.load(given)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(9, np.float32), "old_bias"))
    onnx.save(model, given)
    made = ending.attach(given, tmp_path / "model.e2e.onnx", Ends("nhwc", top_k=1))
    names = {t.name for t in onnx.load(made.path).graph.initializer}
    assert "old_bias" not in names
    assert {"w1", "w2", "w3", "w4", "pixel_scale", "pixel_shift", "how_many"} == names


def test_a_wrong_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = source(tmp_path)
    real = ending._take_pixels
    swapped = Preprocess(PRE.size, PRE.mean[::-1], PRE.std)
    monkeypatch.setattr(ending, "_take_pixels", lambda g, pre, *rest: real(g, swapped, *rest))
    with pytest.raises(ParityFailed, match=r"e2e\.onnx: with its ends the answers move by"):
        ending.attach(given, tmp_path / "e2e.onnx", Ends("nhwc"))
    assert not (tmp_path / "e2e.onnx").exists()


def test_helpful_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--layout hwc: expected nhwc or nchw"):
        Ends("hwc")
    with pytest.raises(UsageError, match="--top-k 9: the network has 5 classes"):
        ending.attach(source(tmp_path), tmp_path / "a.onnx", Ends(top_k=9))
    with pytest.raises(DataError, match="nothing says how its images are prepared"):
        ending.attach(network(tmp_path / "bare.onnx"), tmp_path / "a.onnx", Ends("nhwc"))
    once = ending.attach(source(tmp_path), tmp_path / "once.onnx", Ends("nhwc")).path
    with pytest.raises(ModelError, match="has ends already"):
        ending.attach(once, tmp_path / "twice.onnx", Ends(softmax=True))


def test_the_command_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = source(tmp_path)
    folder = tmp_path / "camera"
    folder.mkdir()
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    words = ["export", str(given), "--images", str(folder), "--embed-preprocess", "--top-k", "2", "--json"]
    assert main(words) == 0
    made = tmp_path / "model.e2e.onnx"
    assert artifact.read(made).meta["ends"]["parity"]["images"] == "given"
    capsys.readouterr()
    told = []
    for file in (given, made):
        assert main(["predict", str(file), "--images", str(folder), "--top", "2", "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out)["predictions"])
    assert [(p["image"], p["name"]) for p in told[0]] == [(p["image"], p["name"]) for p in told[1]]
    shares = [[p["confidence"] for p in part] for part in told]
    np.testing.assert_allclose(shares[0], shares[1], atol=1e-5)
    assert main(["predict", str(made), "--images", str(folder), "--top", "3"]) == 2
    assert "was exported with --top-k 2" in capsys.readouterr().err
    times = ["--seconds", "0.05", "--runs", "5", "--warmup", "0.01"]
    assert main(["bench", str(made), "--images", str(folder), *times, "--json"]) == 0
