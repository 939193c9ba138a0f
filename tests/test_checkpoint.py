"""A checkpoint rebuilds what it was written from, in a fresh process, and names what does not fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeprune import checkpoint, header
from edgeprune.errors import CheckpointError, DataError, UntrustedFactory
from edgeprune.model import Network
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions

DIGITS = "edgeprune.digits_net:digits_net"


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return open_network(DIGITS, ModelOptions(weights="none"))[0]


def _edit(path: Path, change: str, value: object) -> None:
    head = header.read(path)
    document = {**head.document, change: value}
    save_file(load_file(path), path, {header.KEY: json.dumps(document)})


def test_a_fresh_process_rebuilds_bit_equal_outputs(tmp_path: Path, network: Network) -> None:
    for parameter in network.module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.history.append({"command": "adapt"})
    file = tmp_path / "model.safetensors"
    checkpoint.write(file, network)
    code = (
        "import sys, torch; from pathlib import Path; from edgeprune import checkpoint;"
        "n = checkpoint.read(Path(sys.argv[1])); torch.save(n.module(n.example()), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, str(file), str(tmp_path / "out.pt")], check=True)
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(out, network.module(network.example()))
    assert checkpoint.read(file).history == [{"command": "adapt"}]


def test_a_module_that_converts_older_state_dicts_leaves_ours_alone(tmp_path: Path) -> None:
    # MNASNet widens its stem when a state dict has no version; ours have today's.
    net = open_network("torchvision:mnasnet0_5", ModelOptions(weights="none"))[0]
    checkpoint.write(tmp_path / "m.safetensors", net)
    again = checkpoint.read(tmp_path / "m.safetensors")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.module(x), net.module(x))


def test_no_pickle_is_written(tmp_path: Path, network: Network) -> None:
    checkpoint.write(tmp_path / "m.safetensors", network)
    data = (tmp_path / "m.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + length])["__metadata__"].keys() == {header.KEY}


def test_a_changed_buffer_outside_the_state_dict_is_kept(tmp_path: Path) -> None:
    network, _ = open_network("timm:swin_tiny_patch4_window7_224", ModelOptions(weights="none", size=224))
    name = next(n for n, _ in network.module.named_buffers() if n not in network.module.state_dict())
    checkpoint.write(tmp_path / "m.safetensors", network)
    assert name not in header.read(tmp_path / "m.safetensors").shapes
    network.module.get_buffer(name).add_(1)
    checkpoint.write(tmp_path / "m.safetensors", network)
    again = checkpoint.read(tmp_path / "m.safetensors")
    assert torch.equal(again.module.get_buffer(name), network.module.get_buffer(name))


def test_a_tensor_that_the_network_lacks_is_named(tmp_path: Path, network: Network) -> None:
    network.module.register_buffer("table", torch.arange(4.0), persistent=False)
    checkpoint.write(tmp_path / "m.safetensors", network)
    with pytest.raises(CheckpointError, match="table: the file stores this tensor, and the network has none"):
        checkpoint.read(tmp_path / "m.safetensors")


def test_helpful_errors(tmp_path: Path, network: Network) -> None:
    with pytest.raises(DataError, match=r"no such file; expected a run folder or a .safetensors checkpoint"):
        checkpoint.read(tmp_path / "none.safetensors")
    with pytest.raises(DataError, match=r"holds no model.safetensors \(did it finish\?\)"):
        checkpoint.read(tmp_path)
    file = tmp_path / "m.safetensors"
    checkpoint.write(file, network)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated or damaged safetensors"):
        checkpoint.read(file)
    torch.save(network.module.state_dict(), tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match="a pickle, which can run code when it is opened: not read"):
        checkpoint.read(tmp_path / "p.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"plain weights without a model; .* --weights"):
        checkpoint.read(tmp_path / "w.safetensors")


def test_an_engine_is_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "model.engine"
    file.write_bytes(bytes(64))
    with pytest.raises(
        CheckpointError, match=r"a file ending in \.engine, where a run folder or a \.safetensors"
    ):
        checkpoint.read(file)


def test_a_foreign_factory_is_not_imported(tmp_path: Path, network: Network) -> None:
    file = tmp_path / "m.safetensors"
    checkpoint.write(file, network)
    _edit(file, "spec", "os:getcwd")
    with pytest.raises(
        UntrustedFactory, match=r"wants to import os:getcwd, which runs code; .* --trust os:getcwd"
    ):
        checkpoint.read(file)


def test_a_skeleton_that_changed_names_the_first_leaf_and_both_versions(
    tmp_path: Path, network: Network
) -> None:
    file = tmp_path / "m.safetensors"
    checkpoint.write(file, network)
    dense = dict(header.read(file).document["dense"])
    dense["features.0.0.weight"] = [16, 3, 3, 3]
    _edit(file, "dense", dense)
    _edit(file, "libraries", {"torch": "1.0"})
    message = r"features.0.0.weight was \[16, 3, 3, 3\] when the file was written \(torch 1.0\) and is \[32, 3, 3, 3\]"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(file)


def test_a_newer_format_says_so(tmp_path: Path, network: Network) -> None:
    file = tmp_path / "m.safetensors"
    checkpoint.write(file, network)
    _edit(file, "format", 99)
    with pytest.raises(CheckpointError, match="format 99, this edgeprune reads 1"):
        checkpoint.read(file)
