"""What needs no network is refused in a moment, in the words of the command itself."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeprune.commands import early
from edgeprune.device_options import BenchOptions, ExportOptions, InspectOptions
from edgeprune.errors import DataError, OutputExists, UsageError
from edgeprune.options import AdaptOptions, PruneOptions
from edgeprune.run import Run


def test_paths_and_names(tmp_path: Path, make_images: Callable[..., Path]) -> None:
    there = make_images(tmp_path / "images")
    early.check(AdaptOptions(target=there, source=there))
    early.check(BenchOptions())
    gone = tmp_path / "gone"
    for options in (
        AdaptOptions(target=gone),
        AdaptOptions(source=gone),
        PruneOptions(target=there, evaluate=gone),
    ):
        with pytest.raises(DataError, match=r"gone: there is no such folder, zip, \.txt list or video"):
            early.check(options)
    with pytest.raises(
        UsageError, match=r"no objective is called 'mmc': did you mean 'mcc'\? There are auto, source"
    ):
        early.check(AdaptOptions(objective="mmc"))
    with pytest.raises(UsageError, match=r"did you mean 'auto'\? There are auto, source"):
        early.check(AdaptOptions(objective="autoo"))
    with pytest.raises(UsageError, match="no objective is called 'list': the choices are adabn, auto"):
        early.check(AdaptOptions(objective="list"))
    with pytest.raises(UsageError, match="no method is called 'tpc': did you mean 'tcp'"):
        early.check(PruneOptions(method="tpc"))


def test_a_folder_that_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Run.create(folder, command="adapt", model="x", config={}) as run:
        pass
    for options in (AdaptOptions(output=folder, resume=True), PruneOptions(output=folder, force=True)):
        early.check(options)
    early.check(AdaptOptions(output=folder, dry_run=True))
    early.check(AdaptOptions(output=folder, export_stats=tmp_path / "stats.json"))
    early.check(InspectOptions(target=tmp_path / "gone"))
    early.check(ExportOptions(output=folder))
    with pytest.raises(OutputExists, match="--resume"):
        early.check(AdaptOptions(output=folder))
    with Run.create(folder, command="adapt", model="x", config={}, resume=True) as run:
        run.finish({})
    early.check(AdaptOptions(output=folder, resume=True))  # what it came to is shown again
    with pytest.raises(OutputExists, match="finished there on"):
        early.check(AdaptOptions(output=folder))


def test_force_does_not_empty_the_folder_of_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Run.create(folder, command="adapt", model="x", config={}) as run:
        run.write("model.safetensors", b"weights")
        run.finish({})
    for model in (folder, folder / "model.safetensors"):
        for kind in (AdaptOptions, PruneOptions):
            with pytest.raises(UsageError, match=r"--force would empty .*, which holds the model itself"):
                early.check(kind(model=str(model), output=folder, force=True))
    early.check(AdaptOptions(model=str(folder), output=tmp_path / "other", force=True))


def test_torch_is_not_loaded_for_it() -> None:
    code = """
import sys
from edgeprune.cli.app import main
assert "numpy" not in sys.modules, "startup.prepare has to come before"
code = main(["adapt", "timm:resnet18", "--target", "not/there"])
heavy = [name for name in ("torch", "torchvision", "timm", "sklearn") if name in sys.modules]
print(code, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(DataError.exit_code), "[]"]
    assert "not/there: there is no such folder" in done.stderr
