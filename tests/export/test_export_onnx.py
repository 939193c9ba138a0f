"""Exported files against the network they came from: equality, shapes, facts, and what stops a wrong one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeprune import artifact
from edgeprune.count import Count, LayerCount, count
from edgeprune.errors import MissingHere, ModelError, ParityFailed, UsageError
from edgeprune.export import graph, profile, weights
from edgeprune.export import onnx as exporting
from edgeprune.runtime import metadata, ort


@dataclass
class Preprocess:
    size: tuple[int, int] = (16, 16)

    def to_json(self) -> dict[str, Any]:
        return {"size": list(self.size), "mean": [0.5] * 3, "std": [0.25] * 3}


@dataclass
class Network:
    """What export needs of edgeprune.model.Network."""

    module: nn.Module
    spec: str = "tests:net"
    preprocess: Preprocess = field(default_factory=Preprocess)
    classes: tuple[str, ...] = tuple("abcde")
    classifier: str = "6"
    history: list[dict[str, Any]] = field(
        default_factory=lambda: [{"command": "prune", "output": "/home/someone"}]
    )

    def example(self, batch: int = 2) -> torch.Tensor:
        return torch.randn(batch, 3, *self.preprocess.size, generator=torch.Generator().manual_seed(0))


def network(width: int = 8) -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 12, 3, groups=4)]
    return Network(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)).eval())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> artifact.Artifact:
    return exporting.export(network(), tmp_path_factory.mktemp("e") / "net.onnx", parents=("abc",))


def test_static_file_is_equal_and_says_what_it_is(exported: artifact.Artifact) -> None:
    assert exported.inputs == (artifact.TensorSpec("images", (1, 3, 16, 16)),)
    assert exported.outputs == (artifact.TensorSpec("logits", (1, 5)),)
    assert exported.meta["parity"]["relative"] < 1e-5
    assert exported.meta["parity"]["n"] == 8
    assert exported.meta["exporter"] == "dynamo"
    assert exported.meta["also_tried"] == {}
    again = artifact.read(exported.path)
    assert again.parents == ("abc",)
    assert again.meta["macs"] == exported.meta["macs"] == count(exported.path).macs
    with ort.open(exported.path) as runner:
        facts = metadata.from_props(runner.metadata)
    assert facts["classes"] == list("abcde")
    assert facts["preprocess"]["size"] == [16, 16]
    assert facts["lineage"] == ["prune"]


def test_nothing_local_is_in_the_file(exported: artifact.Artifact) -> None:
    data = exported.path.read_bytes() + artifact.sidecar(exported.path).read_bytes()
    for secret in (
        b"stack_trace",
        b"/home/someone",
        b'.py"',
        b"site-packages",
        str(Path(__file__).parent).encode(),
    ):
        assert secret not in data
    assert [p.name for p in exported.path.parent.iterdir() if p.name.startswith(".")] == []


def test_free_batch_is_equal_at_other_sizes(tmp_path: Path) -> None:
    net = network()
    made = exporting.export(net, tmp_path / "net.onnx", batch="1:4:8")
    assert made.inputs[0].shape == ("batch", 3, 16, 16)
    assert made.meta["batch"] == "1:4:8"
    assert made.meta["parity"]["n"] == 9
    images = net.example(7)
    with ort.open(made) as runner, torch.no_grad():
        np.testing.assert_allclose(
            runner.infer({"images": images.numpy()})["logits"], net.module(images).numpy(), atol=1e-5
        )


def test_simplified_file_is_counted_before(tmp_path: Path, exported: artifact.Artifact) -> None:
    made = exporting.export(network(), tmp_path / "net.onnx", slim=True)
    assert made.meta["simplified"]
    assert made.meta["macs"] == exported.meta["macs"]


def test_a_graph_that_onnxslim_cannot_take_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: Any) -> Any:
        raise RuntimeError("cannot fold /some/where/node")

    monkeypatch.setattr(graph, "simplify", fails)
    made = exporting.export(network(), tmp_path / "net.onnx", slim=True, parents=("abc",))
    assert made.meta["simplified"] is False
    assert made.meta["not_simplified"].startswith("onnxslim failed: cannot fold")
    assert made.meta["checkpoint"] == "abc"


def test_falls_back_to_the_other_exporter_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.onnx.export

    def wrong(module: Any, args: Any, f: str, **options: Any) -> None:
        real(module, args, f, **options)
        if options["dynamo"]:
            model = onnx.load(f)
            bias = next(t for t in model.graph.initializer if list(t.dims) == [5])
            bias.CopyFrom(onnx.numpy_helper.from_array(np.full(5, 9, np.float32), bias.name))
            onnx.save(model, f)

    monkeypatch.setattr(torch.onnx, "export", wrong)
    made = exporting.export(network(), tmp_path / "net.onnx")
    assert made.meta["exporter"] == "torchscript"
    assert "not equal to the network: relative error" in made.meta["also_tried"]["dynamo"]
    assert (tmp_path / "net.failed.onnx").is_file()
    report = json.loads((tmp_path / "net.failed.onnx.parity.json").read_text())
    assert report["max_abs"] > 1
    assert len(report["worst"]) == 8


def test_no_file_when_nothing_is_equal(tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        net.module[0].weight[0] = float("nan")
    with pytest.raises(
        ParityFailed, match=r"not exported.*the reference gives NaN or infinity on 8 of 8 images"
    ):
        exporting.export(net, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
    assert not artifact.sidecar(tmp_path / "net.onnx").exists()


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        odd: torch.Tensor = torch.special.bessel_j0(x)
        return odd.mean((2, 3)) @ torch.ones(3, 5)


def test_unsupported_operator_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="bessel_j0") as caught:
        exporting.export(Network(Unknown()), tmp_path / "net.onnx")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_weight_of_another_width_is_refused() -> None:
    slim, dense = network(4), network(8)
    small = onnx.numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "0.weight")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [small]))
    with pytest.raises(
        ParityFailed, match=r"0\.weight: exported as \[8, 3, 3, 3\], the network has \[4, 3, 3, 3\]"
    ):
        weights.check(slim.module, slim.example(), model, None)  # type: ignore[arg-type]
    del model.graph.initializer[:]
    shapes = [tuple(m.weight.shape) for m in dense.module if isinstance(m, (nn.Conv2d, nn.Linear))]
    counted = Count(0, 0, tuple(LayerCount("x", "Conv", 0, 0, s, ()) for s in shapes))
    weights.check(dense.module, dense.example(), model, counted)
    with pytest.raises(
        ParityFailed, match=r"0: no exported layer holds a weight of its shape \[4, 3, 3, 3\]"
    ):
        weights.check(slim.module, slim.example(), model, counted)


def test_file_with_the_dense_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, dense = torch.onnx.export, network(8).module
    monkeypatch.setattr(
        torch.onnx, "export", lambda module, args, f, **options: real(dense, args, f, **options)
    )
    with pytest.raises(ParityFailed, match=r"exported as \[8, 3, 3, 3\], the network has \[4, 3, 3, 3\]"):
        exporting.export(network(4), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_past_the_limit_go_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "ONE_FILE", 100)
    made = exporting.export(network(64), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx.data").is_file()
    assert made.meta["data"]["sha256"] == artifact.sha256(tmp_path / "net.onnx.data")
    assert count(made.path).macs == made.meta["macs"]


def test_attention_module_exports(tmp_path: Path) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.embed(x).flatten(2).transpose(1, 2)
            made: torch.Tensor = self.head(self.layer(tokens).mean(1))
            return made

    torch.manual_seed(0)
    net: Any = Network(Attends().eval())
    made = exporting.export(net, tmp_path / "net.onnx", batch="1:2:4")
    # tokens 16, width 8: embed 16*8*48, qkv 16*8*24, scores and mix 2*16*16*8, out 16*8*8,
    # mlp 2*16*8*16, head 40
    assert made.meta["macs"] == 6144 + 3072 + 4096 + 1024 + 4096 + 40


@pytest.mark.parametrize(
    ("batch", "expected"), [("1", (1, 1, 1)), ("8", (8, 8, 8)), ("1:8:32", (1, 8, 32)), ("4:4:4", (4, 4, 4))]
)
def test_batch_words(batch: str, expected: tuple[int, int, int]) -> None:
    made = profile.parse(batch)
    assert (made.lowest, made.best, made.highest) == expected
    assert profile.parse(str(made)) == made


def test_helpful_errors(tmp_path: Path) -> None:
    for word in ("0", "8:1:32", "a", "1:2", "-1", "", "1:8:32:64", "²"):
        with pytest.raises(UsageError, match="expected a number, or lowest:best:highest"):
            profile.parse(word)
    with pytest.raises(UsageError, match=r"--opset 5: expected 17 to 23"):
        exporting.export(network(), tmp_path / "net.onnx", opset=5)
    with pytest.raises(UsageError, match=r"ends in \.onnx"):
        exporting.export(network(), tmp_path / "net.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingHere, match=r"cannot be written .*give another --output"):
        exporting.export(network(), tmp_path / "file" / "net.onnx")
