"""Every word that a user may call a model: what it opens, and what is said when it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgeprune import checkpoint
from edgeprune.errors import BrokenModel, DataError, MissingHere, ModelError, UsageError, WeightsError
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions

RANDOM = ModelOptions(weights="none")
DIGITS = "edgeprune.digits_net:digits_net"


def test_a_spec_brings_its_preprocessing_and_classes() -> None:
    network, fresh = open_network("torchvision:resnet18", RANDOM)
    assert not fresh
    assert network.preprocess.size == (224, 224)
    assert network.preprocess.crop == pytest.approx(224 / 256)
    assert network.classes[0] == "tench"
    assert network.classifier == "fc"


def test_another_class_count_makes_a_new_head_with_the_source_names() -> None:
    network, fresh = open_network(DIGITS, ModelOptions(weights="none", classes="2"), ("cat", "dog"))
    assert fresh
    assert network.classes == ("cat", "dog")
    assert network.module(network.example()).shape == (2, 2)


def test_names_from_a_file_keep_a_head_of_the_same_width(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"digit{i}" for i in range(10)))
    network, fresh = open_network(DIGITS, ModelOptions(weights="none", classes=str(tmp_path / "names.txt")))
    assert not fresh
    assert network.classes[3] == "digit3"


def test_size_mean_and_std_replace_the_published_ones() -> None:
    options = ModelOptions(weights="none", size=64, mean="0.5", std="0.1,0.2,0.3", interpolation="nearest")
    pre = open_network("timm:resnet18", options)[0].preprocess
    assert (pre.size, pre.mean, pre.std, pre.interpolation) == (
        (64, 64),
        (0.5,) * 3,
        (0.1, 0.2, 0.3),
        "nearest",
    )


def test_a_transformer_is_built_for_the_size(tmp_path: Path) -> None:
    network, _ = open_network("timm:vit_tiny_patch16_224", ModelOptions(weights="none", size=96))
    assert network.module.get_parameter("pos_embed").shape[1] == 1 + 36
    checkpoint.write(tmp_path / "vit.safetensors", network)
    again, _ = open_network(str(tmp_path / "vit.safetensors"), ModelOptions())
    assert torch.equal(again.module(again.example()), network.module(network.example()))


@pytest.mark.parametrize(
    ("word", "options", "error", "message"),
    [
        ("timm:resnet81", RANDOM, ModelError, "timm has no model 'resnet81': did you mean"),
        ("torchvision:resnet", RANDOM, ModelError, "torchvision has no model 'resnet': did you mean"),
        ("resnet18", RANDOM, ModelError, "neither a model nor a file that exists"),
        ("no.such.module:make", RANDOM, ModelError, "cannot import 'no.such.module'"),
        ("edgeprune.digits_net:digit_net", RANDOM, ModelError, "did you mean 'digits_net'"),
        (
            "torchvision:resnet18",
            ModelOptions(offline=True),
            MissingHere,
            r"are not in the cache \(--offline\)",
        ),
        (DIGITS, ModelOptions(weights="none", classes="1"), UsageError, "expected at least 2"),
        (DIGITS, ModelOptions(weights="none", classes="x.txt"), DataError, "neither a number nor a file"),
        (DIGITS, ModelOptions(weights="none", mean="a,b"), UsageError, "expected one or three numbers"),
        (DIGITS, ModelOptions(weights="absent.pth"), WeightsError, "no such file"),
    ],
)
def test_helpful_errors(word: str, options: ModelOptions, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_network(word, options)


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    network, _ = open_network(DIGITS, ModelOptions(weights="none", classes="2"))
    name = f"{network.classifier}.weight"
    network.module.state_dict()[name][0, :3] = float("nan")
    checkpoint.write(tmp_path / "net.safetensors", network)
    with pytest.raises(BrokenModel, match=f"weight {name} holds NaN or infinity in 3 of") as found:
        open_network(str(tmp_path / "net.safetensors"), ModelOptions())
    assert found.value.exit_code == 4


def test_a_network_that_is_no_classifier_says_where_to_go_and_fetches_nothing() -> None:
    with pytest.raises(
        ModelError, match=r"the output is OrderedDict; expected logits .* from Python, see docs/prune"
    ):
        open_network("torchvision:lraspp_mobilenet_v3_large", ModelOptions(weights="none", size=64))


def test_offline_is_said_before_the_client_is_imported() -> None:
    """It reads the variable once; a size makes timm be imported before weights are asked for."""
    code = """
from edgeprune.errors import MissingHere
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions
try:
    open_network("timm:vit_tiny_patch16_224", ModelOptions(offline=True, size=64))
except MissingHere:
    from huggingface_hub import constants
    assert constants.HF_HUB_OFFLINE
else:
    raise AssertionError("the weights are in this machine's cache")
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HF_HOME": "/nonexistent"})


def test_a_class_count_that_disagrees_with_the_source() -> None:
    with pytest.raises(DataError, match="--classes 3, but the source has 2: cat, dog"):
        open_network(DIGITS, ModelOptions(weights="none", classes="3"), ("cat", "dog"))


def test_a_number_of_classes_renames_none_that_a_network_has(tmp_path: Path) -> None:
    network, _ = open_network(DIGITS, RANDOM)
    network.classes = tuple("jihgfedcba")
    file = tmp_path / "c.safetensors"
    checkpoint.write(file, network)
    sorted_by_folder = tuple("abcdefghij")
    opened, fresh = open_network(str(file), ModelOptions(classes="10"), sorted_by_folder)
    assert not fresh
    assert opened.classes == network.classes
    named, _ = open_network(DIGITS, ModelOptions(weights="none", classes="10"), sorted_by_folder)
    assert named.classes == sorted_by_folder, "numbers are no names"


def test_a_checkpoint_is_no_weights_file(tmp_path: Path) -> None:
    network, _ = open_network(DIGITS, RANDOM)
    checkpoint.write(tmp_path / "c.safetensors", network)
    with pytest.raises(WeightsError, match="this is a checkpoint of edgeprune; give it as the model"):
        open_network(DIGITS, ModelOptions(weights=str(tmp_path / "c.safetensors")))
    with pytest.raises(UsageError, match="has its own weights"):
        open_network(str(tmp_path / "c.safetensors"), ModelOptions(weights="x.pth"))


def test_weights_by_order_are_recorded(tmp_path: Path) -> None:
    donor = open_network(DIGITS, RANDOM)[0].module
    renamed = {
        f"w{i:03}": t for i, (n, t) in enumerate(donor.state_dict().items()) if not n.endswith("tracked")
    }
    save_file(renamed, tmp_path / "w.safetensors")
    options = ModelOptions(weights=str(tmp_path / "w.safetensors"), map_by_order=True)
    network, _ = open_network(DIGITS, options)
    assert network.history[0]["pairs"][0] == ["w000", "features.0.0.weight"]
    assert torch.equal(network.module(network.example()), donor.eval()(network.example()))
