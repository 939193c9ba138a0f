"""The torch-free commands, from the words to what is printed, on a network of one convolution."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeprune.cli.app import main
from edgeprune.commands import files
from edgeprune.commands.predict import predict
from edgeprune.device_options import PredictOptions
from edgeprune.errors import UsageError

pytest.importorskip("onnxruntime")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """tmp/net.onnx: 8x8 images -> 2 logits, through a 3x3 convolution with 2 channels."""
    weight = numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "conv.weight")
    nodes = [
        helper.make_node("Conv", ["images", "conv.weight"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph(nodes, "net", [images], [logits], [weight])
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_bench_prints_a_row_each_and_json(network: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = network.with_name("other.onnx")
    other.write_bytes(network.read_bytes())
    quick = ["--seconds", "0.05", "--warmup", "0.05", "--runs", "20"]
    assert main(["bench", str(other), "--baseline", str(network), *quick]) == 0
    out = capfd.readouterr().out
    for said in ("net.onnx", "other.onnx", "p50 ms"):
        assert said in out
    file = network.with_name("bench.json")
    assert main(["bench", str(network), *quick, "--json", "-o", str(file)]) == 0
    whole = json.loads(capfd.readouterr().out)
    assert whole == json.loads(file.read_text()), "one shape for both"
    assert len(whole["results"]) == 1
    assert main(["bench", str(network), *quick, "-o", str(file)]) == 1
    assert capfd.readouterr().err.endswith("exists; --force replaces it\n")


def test_inspect_lists_the_layers(network: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(network)]) == 0
    out = capfd.readouterr().out
    assert "2x3x3x3" in out
    assert "3.46 K" in out, "8 * 8 * 2 * 27 MACs"


def test_inspect_of_nothing_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none.onnx")]) == 1
    err = capfd.readouterr().err
    assert "no such file" in err
    assert err.count("\n") == 1


def test_report_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "adapt-net-1"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"command": "adapt", "model": "a:b"}))
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["file"] == str(run / "report.html")
    assert "adapt-net-1" in (run / "report.html").read_text()


def test_predict_refuses_before_it_runs(
    network: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("opened before it refused")

    monkeypatch.setattr(files, "open_runner", fail)
    words = ["predict", str(network), "--images", str(tmp_path)]
    assert main([*words, "--csv", "/proc/no/x.csv"]) == 5
    assert "/proc/no/x.csv: cannot be written, since /proc takes no file" in capfd.readouterr().err
    assert main([*words, "--csv", str(tmp_path)]) == 2
    assert "is a folder; expected the name of a file to write" in capfd.readouterr().err
    with pytest.raises(
        UsageError, match="ARTIFACT is missing; give an ONNX file, a run folder or a checkpoint"
    ):
        predict(PredictOptions(images=tmp_path))


def test_predict_names_each_image(network: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (8, 8), "white").save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    code = main(["predict", str(network), "--images", str(folder)])
    out, err = capfd.readouterr()
    assert (code, "a.png" in out) in ((0, True), (1, False))
    assert err.count("error:") == code
