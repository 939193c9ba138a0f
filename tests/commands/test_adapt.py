"""adapt: labels of the target never count, odd and bad images are handled, and mistakes leave nothing behind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from edgeprune import artifact, header, records, run, train
from edgeprune.commands.adapt import adapt
from edgeprune.data.pixels import Pixels
from edgeprune.errors import (
    CheckpointError,
    DataError,
    DiskFull,
    OutputExists,
    UntrustedFactory,
    UsageError,
    WeightsError,
)
from edgeprune.methods import learning
from edgeprune.objectives import propagation
from edgeprune.objectives.auto import Auto
from edgeprune.opening import open_network
from edgeprune.options import AdaptOptions
from edgeprune.run import Run

Make = Callable[..., Path]
DIGITS = "edgeprune.digits_net:digits_net"
QUICK = AdaptOptions(
    model=DIGITS, weights="none", classes="2", size=16, steps=4, source_steps=2, batch=4, device="cpu"
)


@pytest.fixture
def images(tmp_path: Path, make_images: Make) -> Path:
    return make_images(tmp_path / "images", count=4)


@pytest.fixture
def options(tmp_path: Path, images: Path) -> AdaptOptions:
    return replace(QUICK, source=images, target=images, output=tmp_path / "run")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_result_log_and_history(options: AdaptOptions, images: Path) -> None:
    found = adapt(replace(options, evaluate=images))
    assert (found.objective, found.images, found.skipped, found.steps) == ("auto", 8, 0, 4)
    assert found.params == sum(
        v.numel()
        for k, v in weights(options.output or Path()).items()
        if "bn" not in k and k.rsplit(".", 1)[1] in ("weight", "bias")
    )
    assert found.macs > 1e6
    assert found.chosen_by == "information"
    assert found.accuracy is not None
    assert found.accuracy_before is not None
    assert found.next == f"edgeprune prune {options.output} --target {images} --macs 0.5"
    assert records.results(options.output or Path()) == found.to_json()
    assert adapt(replace(options, force=True)).accuracy is None
    assert adapt(replace(options, force=True, flip=False)).next == f"{found.next} --no-flip"


@pytest.mark.parametrize("objective", ["mcc", "shot", "fixmatch"])
def test_target_labels_never_count(
    objective: str, options: AdaptOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images in the same order under other class folders: bit-equal weights. The loop sees labels None."""
    seen: list[Any] = []
    fit = train.fit

    def spy(network: Any, what: Any, target: Pixels, *more: Any, **named: Any) -> train.Fit:
        seen.append(target.labels)
        return fit(network, what, target, *more, **named)

    monkeypatch.setattr(train, "fit", spy)
    assert options.target is not None
    files = sorted(options.target.rglob("*.png"))
    other = tmp_path / "other"
    for number, file in enumerate(files):
        place = other / ("ant" if number < 3 else "bee" if number < 4 else "cow") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    first = replace(options, objective=objective)
    adapt(first)
    adapt(replace(first, target=other, output=tmp_path / "again"))
    assert same(tmp_path / "run", tmp_path / "again")
    assert seen == [None] * 4


def test_bad_files_among_good_ones_are_listed(options: AdaptOptions, images: Path) -> None:
    whole = (images / "cat" / "0.png").read_bytes()
    (images / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "dog" / "letter.jpg").write_text("Dear Sir")
    found = adapt(replace(options, source=None, classes=None, source_steps=None))
    assert (found.objective, found.images, found.skipped) == ("auto", 8, 2)
    log = ((options.output or Path()) / "log.txt").read_text()
    assert "cut.png" in log
    assert "letter.jpg" in log


def test_kinds_of_images_pass_through(options: AdaptOptions, tmp_path: Path) -> None:
    folder = tmp_path / "kinds"
    folder.mkdir()
    random = np.random.default_rng(0)
    rgb = Image.fromarray(random.integers(0, 255, (20, 14, 3), dtype=np.uint8))
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("P").save(folder / "palette.gif")
    Image.fromarray(random.integers(0, 65535, (20, 14)).astype(np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    found = adapt(replace(options, target=folder))
    assert (found.images, found.skipped) == (6, 0)


def test_dry_run_writes_nothing(options: AdaptOptions, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = adapt(replace(options, dry_run=True, cache=tmp_path.parent / "cache"))
    assert (found.run, found.images, found.next) == (None, 8, None)
    assert found.plan is not None
    assert (found.plan["chooses"], found.plan["batch"]) == ("information", options.batch)
    assert sorted(tmp_path.rglob("*")) == before


def plant(tmp_path: Path, kind: str) -> Path:
    """A checkpoint that must not be opened."""
    file = tmp_path / f"{kind}.safetensors"
    if kind == "pickle":
        torch.save({"a": torch.zeros(1)}, file)
    elif kind == "foreign":
        document = {"format": 1, "spec": "os:getcwd", "build": {}}
        save_file({"a": torch.zeros(1)}, file, {"edgeprune": json.dumps(document)})
    else:
        whole = (tmp_path / "run" / "model.safetensors").read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    return file


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("pickle", CheckpointError, "a pickle, which can run code when it is opened: not read"),
        ("foreign", UntrustedFactory, "wants to import os:getcwd, .*--trust os:getcwd"),
        ("cut", CheckpointError, "truncated or damaged"),
    ],
)
def test_checkpoints_that_are_not_opened(
    kind: str, error: type[Exception], message: str, options: AdaptOptions, tmp_path: Path
) -> None:
    if kind == "cut":
        adapt(replace(options, steps=0, source_steps=1))
    file = plant(tmp_path, kind)
    with pytest.raises(error, match=message):
        adapt(replace(options, model=str(file), weights=None, output=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_mistakes_leave_no_folder(options: AdaptOptions, tmp_path: Path, make_images: Make) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    (tmp_path / "wrong.txt").write_text("x")
    save_file({"features.0.0.weight": torch.zeros(7, 3, 3, 3)}, tmp_path / "other.safetensors")
    three = make_images(tmp_path / "three", ("cat", "cow", "dog"), 2)
    bare = {"model": "torchvision:squeezenet1_1", "size": 32}  # it has no norms
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (UsageError, "--target is missing", {"target": None}),
        (DataError, "empty", {"target": tmp_path / "empty"}),
        (DataError, r"a\.png: .*(not|no) ", {"target": tmp_path / "bad"}),
        (DataError, "--classes 2, but the source has 3: cat, cow, dog", {"source": three}),
        (DataError, "folder 'cow' is no class of the model", {"evaluate": three}),
        (WeightsError, r"features.0.0.weight", {"weights": str(tmp_path / "other.safetensors")}),
        (
            UsageError,
            "mcc has no knob 'temprature': did you mean 'temperature'",
            {"objective": "mcc", "set": ("temprature=2",)},
        ),
        (UsageError, "no objective is called 'mmc': did you mean 'mcc'", {"objective": "mmc"}),
        (UsageError, "--objective cdan learns from labelled source", {"objective": "cdan", "source": None}),
        (UsageError, "2 classes is new, and only labelled images can train it", {"source": None}),
        (UsageError, "has no batch-norm layer .* take another --objective", {"objective": "adabn", **bare}),
        (UsageError, "no normalisation layer .* take another --objective", {"objective": "tent", **bare}),
        (UsageError, "--batch 0: expected 1 or more", {"batch": 0}),
        (UsageError, "--steps -1: expected 0 or more", {"steps": -1}),
        (UsageError, "--lr nan: expected a number above 0", {"lr": float("nan")}),
        (UsageError, "--ema 1: expected 0 or more, less than 1", {"ema": 1}),
        (UsageError, "--crop 2.0: expected", {"crop": 2.0}),
    ]
    for error, message, change in wrong:
        with pytest.raises(error, match=message) as found:
            adapt(replace(options, **change))
        assert "\n" not in str(found.value), message
        assert not (tmp_path / "run").exists(), message


def test_source_steps_need_a_source(options: AdaptOptions) -> None:
    with pytest.raises(UsageError, match="--source-steps 2 needs --source DIR"):
        adapt(replace(options, source=None, classes=None))


def test_what_exists_stays(options: AdaptOptions, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    for force in (False, True):
        with pytest.raises(OutputExists, match=r"no run of edgeprune \(thesis.tex\)"):
            adapt(replace(options, output=tmp_path / "mine", force=force))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["model.safetensors", "source.done", "done.json"])
def test_a_full_disk_loses_nothing(
    name: str, options: AdaptOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(replace(options, output=tmp_path / "whole"))
    write = artifact.write_atomically
    with monkeypatch.context() as patch:

        def full(path: Path, data: bytes) -> None:
            if path.name == name:
                raise OSError(28, "No space left on device")
            write(path, data)

        patch.setattr(run, "write_atomically", full)
        with pytest.raises(DiskFull, match=r"no space left.*what was written before is intact.*--resume"):
            adapt(options)
    assert (tmp_path / "run" / "config.toml").exists()
    assert not records.is_done(tmp_path / "run")
    adapt(replace(options, resume=True))
    assert same(tmp_path / "whole", tmp_path / "run")


def test_options_that_nothing_looks_at_are_warned_of(options: AdaptOptions) -> None:
    made = adapt(replace(options, objective="source", source_steps=0, crop=0.5, resume=True))
    assert made.warnings == (f"--resume: nothing was begun in {made.run}, so the run started anew",)
    assert (made.chosen_by, made.chosen_step) == (None, 4)
    again = replace(options, model=str(made.run), weights=None, classes=None, size=None, source_steps=None)
    again = replace(again, output=options.output.with_name("again"), crop=0.5)  # type: ignore[union-attr]
    crop = r"--crop 0.5: --objective {} does not look at it: its views are {}, which"
    source = f"--source {options.source}: "
    found = adapt(replace(again, objective="shot")).warnings
    assert len(found) == 1
    assert found[0].startswith(
        source + "--objective shot does not look at it: it learns from the target alone"
    )
    assert found[0] in (again.output / "log.txt").read_text()  # type: ignore[operator]
    dry = replace(again, dry_run=True)
    (strong,) = adapt(dry).warnings
    assert strong.startswith(crop.format("auto", "strong"))
    told = adapt(replace(dry, objective="adabn")).warnings
    assert [w.split(":")[0] for w in told] == ["--crop 0.5", f"--source {options.source}", "--steps 4"]
    for heard in ({"objective": "mcc"}, {"source_steps": 3}, {"objective": "fixmatch"}):
        assert adapt(replace(dry, **heard)).warnings == (), heard
    assert adapt(replace(dry, objective="shot", hold_out=0.5)).warnings == ()
    assert adapt(replace(dry, objective="auto", crop=None)).warnings == ()


@pytest.mark.parametrize(("words", "share"), [(("blend=0.3",), "30%"), ((), "33.3%")])
def test_the_share_of_the_targets_statistics_is_the_users(
    options: AdaptOptions, words: tuple[str, ...], share: str
) -> None:
    made = adapt(replace(options, objective="adabn", set=words)).run
    assert f"batch-norm: {share} of the target's statistics" in (made / "log.txt").read_text()  # type: ignore[operator]


def test_a_run_is_not_shared(options: AdaptOptions, tmp_path: Path) -> None:
    with (
        Run.create(tmp_path / "run", command="adapt", model="x", config={}),
        pytest.raises(Exception, match="in use by process"),
    ):
        adapt(replace(options, resume=True))


def test_features_from_before_the_fine_tuning(options: AdaptOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = adapt(replace(options, objective="source")).run
    older = cloud / "model.safetensors"  # type: ignore[operator]
    asked: list[Any] = []
    made = learning.make

    def make(*words: Any) -> Any:
        asked.append(words[3])
        return made(*words)

    monkeypatch.setattr(learning, "make", make)
    again = replace(
        options, model=str(cloud), weights=None, classes=None, size=None, source=None, source_steps=None
    )
    again = replace(again, output=options.output.with_name("again"))  # type: ignore[union-attr]
    adapt(again)
    adapt(replace(again, output=again.output.with_name("steadied"), pretrained=older))  # type: ignore[union-attr]
    assert asked[0] is None
    assert asked[1].shape == (8, made(Auto, open_network(str(cloud), again)[0]).task.features)


def test_pretrained_is_for_objectives_that_use_it(options: AdaptOptions, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--pretrained is of no use to --objective mcc; auto takes it"):
        adapt(replace(options, objective="mcc", pretrained=tmp_path))
    save_file({"other": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w.safetensors: .*keys are missing"):
        adapt(replace(options, pretrained=tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("kappa", "given", "rate"), [(0.95, None, 1e-4), (0.3, None, 5e-4), (0.95, 2e-3, 2e-3)]
)
def test_a_small_shift_without_source_is_learned_gently(
    options: AdaptOptions, monkeypatch: pytest.MonkeyPatch, kappa: float, given: float | None, rate: float
) -> None:
    rates: list[tuple[str, float]] = []
    fit = train.fit

    def watched(*words: Any, stage: str, **more: Any) -> Any:
        rates.append((stage, words[4].lr))
        return fit(*words, stage=stage, **more)

    monkeypatch.setattr(train, "fit", watched)
    monkeypatch.setattr(propagation, "settled", lambda *_: kappa)
    cloud = adapt(replace(options, objective="source")).run
    again = replace(options, model=str(cloud), weights=None, classes=None, size=None, source=None)
    again = replace(again, output=options.output.with_name("again"), source_steps=None, lr=given)  # type: ignore[union-attr]
    rates.clear()
    made = adapt(again).run
    assert rates == [("adapt", rate)]
    assert header.read(made).document["history"][-1]["options"]["lr"] == rate  # type: ignore[arg-type]
    assert ("the shift looks small" in (made / "log.txt").read_text()) == (kappa == 0.95)  # type: ignore[operator]


def test_with_a_source_no_shift_is_taken_for_small(
    options: AdaptOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagation, "settled", lambda *_: 0.95)
    made = adapt(replace(options, objective="auto")).run
    log = (made / "log.txt").read_text()  # type: ignore[operator]
    assert "the shift looks small" not in log
    assert "learning rate 0.0005, views ('strong',)" in log
