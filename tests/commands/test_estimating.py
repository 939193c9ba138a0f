"""adapt without labels still says how accurate it may be, and what classes the target holds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprune import absent, checkpoint, estimate, header, inference, records
from edgeprune.commands import estimating
from edgeprune.commands.adapt import adapt
from edgeprune.commands.export import export
from edgeprune.commands.predict import predict
from edgeprune.commands.prune import prune
from edgeprune.data import folder
from edgeprune.data.pixels import Pixels, split
from edgeprune.device_options import ExportOptions, PredictOptions
from edgeprune.errors import DataError, ModelError, OutputExists, UsageError
from edgeprune.images import Preprocess
from edgeprune.model import Network
from edgeprune.options import AdaptOptions, PruneOptions

QUICK = AdaptOptions(
    model="edgeprune.digits_net:digits_net",
    weights="none",
    classes="3",
    size=16,
    steps=30,
    source_steps=60,
    batch=12,
    lr=3e-3,
    device="cpu",
    flip=False,
    objective="mcc",
    set=("partial=true",),
)
COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


def coloured(root: Path, names: tuple[str, ...], count: int, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.normal(COLOURS[name], 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with everything: a source of three colours, a target of two."""
    root = tmp_path_factory.mktemp("estimating")
    source = coloured(root / "source", ("blue", "green", "red"), 80)
    target = coloured(root / "target", ("blue", "red"), 40, seed=1)
    adapt(
        replace(
            QUICK,
            source=source,
            target=target,
            evaluate=target,
            output=root / "run",
            cache=root / "cache",
            hold_out=0.2,
            select="mixval",
            drop_absent_classes=True,
        )
    )
    return root


def test_held_out_source_gives_curves_and_an_estimate(place: Path) -> None:
    facts = records.results(place / "run")
    said = facts["estimate"]
    assert (said["method"], said["images"]) == ("atc", 80)
    assert said["accuracy_low"] <= facts["accuracy"] <= said["accuracy_high"]
    scores = [
        m["validators"] for m in records.metrics(place / "run") if "validators" in m and m["stage"] == "adapt"
    ]
    assert len(scores) == 7
    assert facts["chosen_by"] == "mixval", "the run is partial"
    expected = {
        "information",
        "entropy",
        "nuclear",
        "snd",
        "ami",
        "histogram",
        "mixval",
        "drift",
        "source",
        "dev",
    }
    assert all(set(s) == expected for s in scores)


def test_absent_classes_leave_the_classifier_and_names_stay_right(place: Path, tmp_path: Path) -> None:
    facts = records.results(place / "run")
    assert facts["present_classes"] == ["blue", "red"]
    assert facts["accuracy"] > 0.9
    document = header.read(place / "run").document
    assert document["classes"] == ["blue", "red"]
    assert {
        "command": "drop-absent-classes",
        "kept": ["blue", "red"],
        "of": ["blue", "green", "red"],
    } in document["history"]
    network = checkpoint.read(place / "run")
    assert network.module.get_submodule(network.classifier).weight.shape == (2, 128)
    labelled = folder.labelled(place / "target", network.preprocess, network.classes, place / "cache")
    assert inference.evaluate(network, labelled) == pytest.approx(facts["accuracy"])
    with pytest.raises(DataError, match="folder 'green' is no class of the model, which has 2"):
        folder.labelled(place / "source", network.preprocess, network.classes, place / "cache")
    export(ExportOptions(model=str(place / "run"), images=place / "target", cache=place / "cache"))
    found = predict(PredictOptions(artifact=str(place / "run"), images=place / "target"))
    right = [p.image.split("/")[0] == p.name for p in found.predictions]
    assert sum(right) / len(right) == pytest.approx(facts["accuracy"])


def test_the_estimate_is_of_the_network_that_is_kept(place: Path) -> None:
    """Two classes are left of three: held-out images of the third say nothing of it, and confidence is over two."""
    network = checkpoint.read(place / "run")
    source = folder.labelled(place / "source", network.preprocess, ("blue", "green", "red"), place / "cache")
    held = split(source, 0.2, QUICK.seed)[1]
    left = absent.without(held, ("blue", "red"), torch.tensor([0, 2]))
    assert left.names == [name for name in held.names if "green" not in name]
    assert left.labels is not None
    assert left.labels.tolist() == [int("red" in name) for name in left.names]
    target = folder.unlabelled(place / "target", network.preprocess, place / "cache")
    logits = inference.predict(network, target)[1].double().numpy()
    expected = estimate.estimate(estimating.measure(network, left), logits, QUICK.seed).to_json()
    found = records.results(place / "run")["estimate"]
    for key in ("accuracy", "accuracy_atc", "accuracy_doc"):
        assert found[key] == pytest.approx(expected[key])
    assert found["accuracy_low"] <= expected["accuracy_low"]
    assert 0 < found["share_agreeing"] <= 1


def test_the_estimate_is_made_after_classes_were_dropped(
    tmp_path: Path, make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is right everywhere has the same estimate before and after; this one knows nothing yet."""
    images = make_images(tmp_path / "i", ("blue", "green", "red"), count=24)
    seen: list[tuple[tuple[str, ...], int, int]] = []
    measure = estimating.measure

    def spy(network: Network, labelled: Pixels) -> estimate.Statistics:
        assert labelled.labels is not None
        seen.append((network.classes, len(labelled), int(labelled.labels.max())))
        return measure(network, labelled)

    monkeypatch.setattr(estimating, "measure", spy)
    monkeypatch.setattr(absent, "present", lambda _: torch.tensor([True, False, True]))
    quick = replace(QUICK, steps=1, source_steps=0, hold_out=0.5, drop_absent_classes=True)
    found = adapt(replace(quick, source=images, target=images, output=tmp_path / "run"))
    assert seen == [(("blue", "green", "red"), 36, 2), (("blue", "red"), 24, 1)]  # before adapting, and after
    assert found.estimate is not None
    assert found.estimate["method"] == "atc"


def test_a_network_that_dropped_classes_goes_on_with_its_source(
    tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    images = make_images(tmp_path / "i", ("blue", "green", "red"), count=24)
    quick = replace(QUICK, steps=1, source_steps=0, drop_absent_classes=True, source=images, target=images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(absent, "present", lambda _: torch.tensor([True, False, True]))
        adapt(replace(quick, output=tmp_path / "run"))
    said = f"--source {images}: left out are classes that the network dropped: green"
    again = replace(quick, model=str(tmp_path / "run"), weights=None, classes=None, size=None)
    found = adapt(replace(again, drop_absent_classes=False, objective="mcc", output=tmp_path / "again"))
    assert said in found.warnings
    run, out = str(tmp_path / "run"), tmp_path / "slim"
    words = PruneOptions(model=run, source=images, target=images, macs="0.7", method="tcp", output=out)
    assert said in prune(words).warnings
    slim = prune(replace(words, evaluate=images, dry_run=True, output=None))
    assert any("24 of 72 images are of classes that the network dropped" in w for w in slim.warnings)


def test_answers_agree_as_classes_of_before() -> None:
    before = 9 * torch.eye(3)[torch.arange(30) % 3]
    after, kept = before[:, [0, 2]], torch.tensor([0, 2])
    network = Network(torch.nn.Identity(), "x", Preprocess((2, 2)), ("a", "c"), "0")
    said = estimating.of(network, None, None, (before, after), 0, kept)
    assert said["share_agreeing"] == pytest.approx(2 / 3)
    labels = np.arange(60) % 3
    known = estimate.measure(9 * np.eye(3)[labels], labels, ("a", "b", "c"))
    assert (
        estimating.of(network, None, known, (before, after), 0, kept)["share_agreeing"]
        == said["share_agreeing"]
    )


def test_statistics_from_the_cloud(place: Path, tmp_path: Path) -> None:
    cloud = replace(
        QUICK, weights=None, classes=None, size=None, model=str(place / "run"), objective="shot", set=()
    )
    both = coloured(tmp_path / "validation", ("blue", "red"), 30, seed=2)
    file = tmp_path / "stats.json"
    said = adapt(replace(cloud, source=both, export_stats=file, cache=tmp_path / "c", source_steps=None))
    assert said.accuracy is not None
    assert said.run is None
    assert said.next is not None
    assert said.next.endswith(f"--target DIR --stats {file}")
    camera = replace(
        cloud, target=place / "target", evaluate=place / "target", source_steps=None, steps=4, stats=file
    )
    found = adapt(replace(camera, output=tmp_path / "r", cache=tmp_path / "c"))
    assert found.estimate is not None
    assert found.accuracy is not None
    assert found.estimate["method"] == "atc and agreement"
    assert found.estimate["accuracy_low"] <= found.accuracy <= found.estimate["accuracy_high"]
    alone = adapt(replace(camera, stats=None, output=tmp_path / "s", cache=tmp_path / "c"))
    assert alone.estimate is not None
    assert alone.estimate["method"] == "agreement"


def test_helpful_errors(tmp_path: Path, make_images: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="--select dev needs labelled source images: give --source DIR"):
        adapt(replace(QUICK, select="dev", target=tmp_path))
    with pytest.raises(UsageError, match="--hold-out needs labelled source"):
        adapt(replace(QUICK, hold_out=0.1, target=tmp_path))
    with pytest.raises(UsageError, match=r"--hold-out 1\.5: expected 0 to 0.9"):
        adapt(replace(QUICK, hold_out=1.5, target=tmp_path, source=tmp_path))
    with pytest.raises(UsageError, match="leave --target out"):
        adapt(replace(QUICK, export_stats=tmp_path / "x", target=tmp_path, source=tmp_path))
    (tmp_path / "x").touch()
    with pytest.raises(OutputExists, match="--force"):
        adapt(replace(QUICK, export_stats=tmp_path / "x", source=tmp_path))
    images = make_images(tmp_path / "i", count=2)
    with pytest.raises(UsageError, match="the classifier is new and untrained"):
        adapt(replace(QUICK, export_stats=tmp_path / "y", source=images))


def test_too_few_held_out_images_are_refused_before_training(
    tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    images = make_images(tmp_path / "i", ("blue", "green", "red"), count=60)
    few = replace(QUICK, source=images, target=images, output=tmp_path / "run", select="dev")
    message = r"--select dev needs at least 20 held-out .* of 180 in .*/i --hold-out 0\.1 keeps 18 .* about 200 images"
    with pytest.raises(UsageError, match=message):
        adapt(few)
    assert not (tmp_path / "run").exists()
    adapt(replace(few, hold_out=0.12, dry_run=True))
    one = make_images(tmp_path / "one", ("blue", "green", "red"), count=1)
    with pytest.raises(UsageError, match=r"--select source needs at least 1 held-out .* keeps 0 "):
        adapt(replace(few, select="source", source=one))
    with pytest.raises(UsageError, match=r"^--hold-out needs at least 1 .* --hold-out 0\.5 keeps 0 "):
        adapt(replace(few, select="mixval", hold_out=0.5, source=one))


def test_statistics_of_another_model_are_refused(tmp_path: Path) -> None:
    z = np.eye(3)[np.arange(30) % 3]
    (tmp_path / "s.json").write_text(
        json.dumps(estimate.measure(z, np.arange(30) % 3, ("a", "b", "c")).to_json())
    )
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    network = Network(module, "x", Preprocess((2, 2)), ("d", "e"), "1")
    with pytest.raises(DataError, match=r"of a model with 3 classes \(a, b, c .* this one has 2"):
        estimating.known(replace(QUICK, stats=tmp_path / "s.json"), network)


def test_split_takes_a_share_of_each_class_and_copies_nothing() -> None:
    labels = torch.tensor([0] * 20 + [1] * 40)
    pixels = Pixels(
        torch.arange(60 * 12, dtype=torch.int64).reshape(60, 2, 2, 3).to(torch.uint8),
        labels,
        [str(i) for i in range(60)],
    )
    first, second = split(pixels, 0.25, seed=3)
    assert second.labels is not None
    assert second.labels.bincount().tolist() == [5, 10]
    assert sorted(first.names + second.names, key=int) == pixels.names
    expected = pixels.take(torch.tensor([int(second.names[2]), int(second.names[0])]))
    assert torch.equal(second.take(torch.tensor([2, 0])), expected)
    assert split(pixels, 0.25, seed=3)[1].names == second.names


def test_present_classes_by_hand() -> None:
    z = torch.tensor([[9.0, 0, -9, 0], [0.0, 9, -9, 0], [9.0, 0, -9, 8.5]])
    assert absent.present(z).tolist() == [
        True,
        True,
        False,
        True,
    ]  # the last is torn, so soft answers speak for it


@pytest.mark.parametrize(("images", "there"), [(40, True), (11, True), (10, False), (0, False)])
def test_a_rare_class_with_sure_images_is_present(images: int, there: bool) -> None:
    """40 of 900 images are less than a twentieth of the commonest class's share, and still a class."""
    counts = torch.tensor([860, images, 0])
    z = 9 * torch.eye(3)[torch.arange(3).repeat_interleave(counts)]
    assert absent.present(z).tolist() == [True, there, False]


def test_a_rare_class_that_nobody_is_sure_of_is_not_present() -> None:
    z = torch.tensor([9.0, 0, 0]).repeat(900, 1)
    z[:30] = torch.tensor([0.0, 1.0, 0])
    assert absent.present(z).tolist() == [True, False, False]


def test_two_heads_are_refused_before_training(tmp_path: Path, make_images: Callable[..., Path]) -> None:
    images = make_images(tmp_path / "i", count=2)
    two = replace(
        QUICK,
        model="timm:deit_tiny_distilled_patch16_224",
        classes=None,
        size=32,
        target=images,
        output=tmp_path / "run",
        objective="shot",
        source_steps=None,
        drop_absent_classes=True,
    )
    with pytest.raises(UsageError, match=r"--drop-absent-classes: timm:deit.*more than the layer head_dist"):
        adapt(two)
    with pytest.raises(
        ModelError, match=r"more than the layer head_dist makes the logits, so they cannot become 2"
    ):
        adapt(replace(two, source=images, classes="2", drop_absent_classes=False))
    assert not (tmp_path / "run").exists()


def test_a_classifier_that_is_not_all_is_left_alone() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(12, 3), torch.nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.a(x.flatten(1)) + torch.nn.functional.pad(
                self.b(x.flatten(1)), (0, self.a.out_features - 3)
            )
            return out

    network = Network(Two(), "two", Preprocess((2, 2)), ("a", "b", "c"), "a")
    before = network.module(network.example())
    with pytest.raises(ModelError, match="more than the layer a makes the logits"):
        absent.drop(network, torch.tensor([True, False, True]))
    with pytest.raises(
        UsageError, match="--drop-absent-classes: two: more than the layer a makes the logits"
    ):
        absent.check(network)
    assert torch.equal(network.module(network.example()), before)
    assert network.classes == ("a", "b", "c")
