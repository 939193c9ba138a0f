"""Latency budgets end to end: layers written, measured without torch, planned with, met on this machine."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune import checkpoint, train
from edgeprune.bench import layer_graphs, layers, undisturbed
from edgeprune.bench.compare import Verdict
from edgeprune.bench.table import LayerTable
from edgeprune.commands import stopwatch
from edgeprune.commands.bench import bench
from edgeprune.commands.export import export
from edgeprune.commands.prune import prune
from edgeprune.commands.stopwatch import Stopwatch
from edgeprune.device_options import BenchOptions, ExportOptions
from edgeprune.errors import BudgetNotMet, DataError, ModelError, OutputExists, UsageError
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions, PruneOptions
from edgeprune.prune import macs

Make = Callable[..., Path]
DIGITS = "edgeprune.digits_net:digits_net"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure as little as possible: no number is looked at."""
    monkeypatch.setattr(layers, "LAYER_S", 0.0)
    monkeypatch.setattr(layers, "FEWEST", 1)
    monkeypatch.setattr(layers, "NETWORK_S", 0.02)
    monkeypatch.setattr(undisturbed, "WARMUP_S", 0.01)
    monkeypatch.setattr(stopwatch, "SECONDS", 0.02)
    monkeypatch.setattr(stopwatch, "MOST_REPEATS", 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-class checkpoint for 16 x 16 images."""
    file = tmp_path_factory.mktemp("dense") / "model.safetensors"
    torch.manual_seed(0)
    network, _ = open_network(DIGITS, ModelOptions(weights="none", classes="2", size=16), ("cat", "dog"))
    checkpoint.write(file, network)
    return file


@pytest.fixture
def options(run: Path, tmp_path: Path, make_images: Make) -> PruneOptions:
    return PruneOptions(
        model=str(run),
        target=make_images(tmp_path / "images", count=4),
        recover=0.0,
        batch=4,
        output=tmp_path / "slim",
        method="distill",
        device="cpu",
    )


class Clock(Stopwatch):
    """A stopwatch on which every million multiply-adds takes a millisecond."""

    factor, interrupted = 1.0, 0.0

    def __init__(self, dense: torch.nn.Module, example: torch.Tensor, threads: int = 1) -> None:
        self.example = example
        self.dense_ms = macs.measure(dense, example)[0] * 1e-6

    def __call__(self, module: torch.nn.Module) -> float:
        return macs.measure(module, self.example)[0] * 1e-6 * self.factor

    def verdict(self, module: torch.nn.Module) -> Any:
        return Verdict("dense", "faster", self.dense_ms / self(module), 1, 2, 0.99, "")

    def close(self) -> None: ...


def test_layers_written_here_are_measured_without_torch(run: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "layers", tmp_path / "table.json"
    made = export(ExportOptions(model=str(run), layers=True, output=folder))
    assert made.layers
    assert made.layers["graphs"] == len(list(folder.glob("[0-9]*.onnx")))
    assert made.next == f"edgeprune bench {folder} --layer-table table.json"
    code = (
        "import sys; sys.modules['torch'] = None; from edgeprune.commands.bench import bench;"
        "from edgeprune.device_options import BenchOptions; from pathlib import Path;"
        "bench(BenchOptions(artifacts=(sys.argv[1],), layer_table=Path(sys.argv[2])))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(file)], check=True, capture_output=True)
    table = LayerTable.read(file)
    assert layers.here(table)
    assert {g.shape for g in layer_graphs.read(folder)[0]} == {one.shape for one in table.layers}
    assert table.network["p50_ms"] > 0
    assert all(t > 0 for one in table.layers for row in one.p50_ms for t in row)
    with pytest.raises(OutputExists, match=r"table\.json exists; --force"):
        bench(BenchOptions(artifacts=(str(folder),), layer_table=file))
    with pytest.raises(OutputExists, match="layers exists; --force"):
        export(ExportOptions(model=str(run), layers=True, output=folder))
    with pytest.raises(DataError, match=r"holds no layers\.json"):
        bench(BenchOptions(artifacts=(str(tmp_path),), layer_table=tmp_path / "other.json"))
    with pytest.raises(UsageError, match="say where with -o DIR"):
        export(ExportOptions(model=str(run), layers=True))


def by_name(path: Path, threads: int, scratch: Path) -> float:
    """A layer takes as long as its name says: "3-16x64.onnx" 1.024 microseconds."""
    inputs, outputs = path.stem.partition("-")[2].split("x")
    return int(inputs) * int(outputs) * 1e-6


def test_a_budget_is_met_as_measured(options: PruneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock counts MACs, which the table knows nothing of: the prediction is wrong and has to be corrected."""
    monkeypatch.setattr(layers, "layer_ms", by_name)
    monkeypatch.setattr("edgeprune.commands.timing.Stopwatch", Clock)
    found = prune(replace(options, latency="0.5x"))
    assert found.latency is not None
    assert 0.95 <= found.latency["of_requested"] <= 1.02
    assert found.latency["measured_ms"] == pytest.approx(found.macs * 1e-6)
    assert found.padded_macs is not None
    assert found.padded_macs >= found.macs
    assert found.run is not None
    assert found.cuts[-1]["latency_of_requested"] == pytest.approx(found.latency["of_requested"])
    assert all("latency_ms" in cut for cut in found.cuts)
    assert LayerTable.read(found.run / "layer-table.json").layers
    both = prune(
        replace(options, latency="0.9x", macs="0.4", output=found.run.with_name("both"), dry_run=True)
    )
    assert both.macs <= 0.4 * both.dense_macs
    assert both.latency is not None
    assert both.latency["of_requested"] <= 1.02


def test_one_that_cannot_be_met_names_the_nearest(
    options: PruneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(Clock):
        def __call__(self, module: torch.nn.Module) -> float:
            return 0.7 * self.dense_ms

    monkeypatch.setattr("edgeprune.commands.timing.Stopwatch", Stuck)
    monkeypatch.setattr(layers, "layer_ms", by_name)
    with pytest.raises(
        BudgetNotMet, match=r"the nearest took .* ms \(1\.40 of the request\): ask for that"
    ) as found:
        prune(replace(options, latency="0.5x", dry_run=True))
    assert found.value.exit_code == 3
    with pytest.raises(BudgetNotMet, match="the smallest plan possible has latency"):
        prune(replace(options, latency="0.0001x", dry_run=True))


def test_a_table_of_another_device_predicts(
    options: PruneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "layer_ms", by_name)
    folder, file = tmp_path / "layers", tmp_path / "board.json"
    export(ExportOptions(model=options.model, layers=True, output=folder))
    table = replace(layers.tabulate(folder), device="a board", network={})
    file.write_text(json.dumps(table.to_json()))
    found = prune(replace(options, latency="0.5x", table=file, dry_run=True))
    assert found.latency is not None
    assert "measured_ms" not in found.latency
    assert found.latency["predicted_ms"] <= found.latency["requested_ms"] == 0.5 * found.latency["dense_ms"]
    assert found.latency["device"].startswith("a board, onnxruntime")
    changes: list[dict[str, Any]] = [{"method": "dalr"}, {"method": "auto", "then": "dalr"}]
    for change in changes:
        with pytest.raises(UsageError, match="dalr times its pairs on this machine"):
            prune(replace(options, latency="0.5x", table=file, **change))
    with pytest.raises(DataError, match="the layer table of a board has no"):
        prune(replace(options, latency="0.5x", table=file, dry_run=True, size=24))
    with pytest.raises(DataError, match=r"none\.json: cannot be read as a layer table"):
        prune(replace(options, latency="0.5x", table=tmp_path / "none.json"))


def test_the_stopwatch_measures_the_network_it_is_given(run: Path) -> None:
    network = checkpoint.read(run)
    with Stopwatch(network.module, network.example()) as watch:
        found = watch.verdict(network.module)
    assert found.ci_low <= found.speedup <= found.ci_high
    assert watch.dense_ms > 0

    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.view_as_real(torch.linalg.eigvals(x.mean(1)))

    with pytest.raises(ModelError, match="needs the network as ONNX, and the exporter failed"):
        Stopwatch(Odd(), torch.randn(1, 3, 4, 4))


class Killed(BaseException):
    pass


class Busy(Clock):
    """A machine that takes `busy` times as long for everything, another time in each process."""

    busy = 1.0

    def __init__(self, dense: torch.nn.Module, example: torch.Tensor, threads: int = 1) -> None:
        super().__init__(dense, example)
        self.macs, self.dense_ms = self.dense_ms, self.dense_ms * self.busy

    def __call__(self, module: torch.nn.Module) -> float:
        return self.dense_ms * macs.measure(module, self.example)[0] * 1e-6 / self.macs


@pytest.mark.parametrize("method", ["swmmd", "admp"])
def test_a_resumed_run_goes_on_with_the_time_it_began_with(
    method: str, options: PruneOptions, tmp_path: Path, make_images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process finds the machine twice as busy: as many cuts, ceilings and channels as without a kill."""
    monkeypatch.setattr("edgeprune.commands.timing.Stopwatch", Busy)
    monkeypatch.setattr(layers, "layer_ms", by_name)
    dense_ms = macs.measure(checkpoint.read(Path(options.model)).module, torch.zeros(1, 3, 16, 16))[0] * 1e-6
    knobs = ("remove=0.25",) if method == "swmmd" else ("passes=2", "rate=0.5")
    words = replace(
        options,
        method=method,
        source=make_images(tmp_path / "source", count=4),
        set=knobs,
        latency=f"{0.5 * dense_ms}ms",
        recover=8.0,
        between=4.0,
    )
    whole = prune(replace(words, output=tmp_path / "whole"))
    passed: list[str] = []
    fit = train.fit

    def killed(*given: Any, **named: Any) -> Any:
        found = fit(*given, **named)
        if not passed and named["stage"] in ("recover-1", "mask-1"):
            passed.append(named["stage"])
            raise Killed
        return found

    monkeypatch.setattr(train, "fit", killed)
    with pytest.raises(Killed):
        prune(replace(words, resume=True))
    monkeypatch.setattr(Busy, "busy", 2.0)
    found = prune(replace(words, resume=True))
    assert found.latency is not None
    assert found.latency["dense_ms"] == pytest.approx(dense_ms)
    assert found.cuts == whole.cuts
    assert found.widths == whole.widths
