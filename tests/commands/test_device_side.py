"""export, bench, predict and inspect on a checkpoint and a folder of images, through the Python API."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeprune import checkpoint
from edgeprune.bench.result import BenchResult
from edgeprune.commands.bench import bench
from edgeprune.commands.export import export
from edgeprune.commands.inspect import inspect
from edgeprune.commands.predict import predict
from edgeprune.device_options import BenchOptions, ExportOptions, InspectOptions, PredictOptions
from edgeprune.errors import DataError, OutputExists, UsageError
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions

DIGITS = "edgeprune.digits_net:digits_net"
QUICK = BenchOptions(seconds=0.05, runs=20, warmup=0.05)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-class checkpoint that tells red from green, and its ONNX file."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    network, _ = open_network(DIGITS, ModelOptions(weights="none", classes="2"), ("cat", "dog"))
    checkpoint.write(folder / "model.safetensors", network)
    export(ExportOptions(model=str(folder)))
    return folder


def test_export_states_what_it_made_and_refuses_to_overwrite(run: Path) -> None:
    again = replace(ExportOptions(model=str(run)))
    with pytest.raises(OutputExists, match=r"model.onnx exists; --force replaces it"):
        export(again)
    made = export(replace(again, force=True))
    assert made.parity is not None
    assert made.parity["relative"] < 1e-4
    assert made.macs == sum((221_184, 4_718_592, 9_437_184 * 2, 4_718_592, 9_437_184 * 2)) + 256
    with pytest.raises(UsageError, match="--to tensorflow: expected onnx"):
        export(replace(again, to=("tensorflow",)))


def test_predict_agrees_with_torch_for_every_image(
    run: Path, tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    images = make_images(tmp_path / "images")
    (images / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n")
    found = predict(PredictOptions(artifact=str(run), images=images, csv=tmp_path / "out.csv", top=2))
    assert len(found.predictions) == 24
    assert len(found.skipped) == 1
    assert "broken.png" in found.skipped[0]
    again = predict(PredictOptions(artifact=str(run / "model.safetensors"), images=images, top=2))
    for a, b in zip(found.predictions, again.predictions, strict=True):
        assert (a.image, a.name, a.rank) == (b.image, b.name, b.rank)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    shares = np.array([float(r["confidence"]) for r in rows]).reshape(-1, 2)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)


def test_bench_compares_with_a_baseline_and_writes_json(
    run: Path, tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    images = make_images(tmp_path / "images")
    out = tmp_path / "bench.json"
    options = replace(
        QUICK,
        artifacts=(str(run / "model.onnx"),),
        baseline=str(run / "model.safetensors"),
        images=images,
        evaluate=images,
        output=out,
    )
    report = bench(options)
    dense, other = report.results
    assert dense.verdict is None
    assert other.verdict is not None
    assert other.verdict.vs == options.baseline
    assert other.model.macs is not None
    assert dense.quality is not None
    assert other.quality is not None
    assert dense.quality["accuracy"] == other.quality["accuracy"]
    assert [BenchResult.from_json(r) for r in json.loads(out.read_text())["results"]] == list(report.results)
    with pytest.raises(OutputExists, match="exists; --force replaces it"):
        bench(options)


def test_inspect_shows_shapes_and_macs(run: Path) -> None:
    facts = inspect(InspectOptions(file=str(run))).to_json()
    assert facts["kind"] == "checkpoint"
    assert facts["dense_parameters"] == facts["parameters"]  # ten classes became two: a new head is no cut
    graph = inspect(InspectOptions(file=str(run / "model.onnx")))
    assert sum(layer.macs or 0 for layer in graph.layers) == graph.facts["macs"]


def test_helpful_errors(run: Path, tmp_path: Path, make_images: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        bench(QUICK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no model.onnx; make it with: edgeprune export"):
        bench(replace(QUICK, artifacts=(str(tmp_path / "empty"),)))
    with pytest.raises(UsageError, match="--runtime torch does not run"):
        bench(replace(QUICK, artifacts=(str(run / "model.onnx"),), runtime="torch"))
    with pytest.raises(UsageError, match=r"--batch '0': expected sizes such as 1 or 1,8"):
        bench(replace(QUICK, artifacts=(str(run),), batch="0"))
    birds = make_images(tmp_path / "birds", ("owl", "dog"))
    with pytest.raises(DataError, match=r"class folders \['owl'\] are not the model's: cat, dog"):
        bench(replace(QUICK, artifacts=(str(run),), evaluate=birds))
    with pytest.raises(UsageError, match="--top 3: expected 1 to 2"):
        predict(PredictOptions(artifact=str(run), images=birds, top=3))
