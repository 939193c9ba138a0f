"""Weights that do not fit are named, and no pickle's code runs."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeprune import weights
from edgeprune.errors import WeightsError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def test_a_state_dict_is_unwrapped(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in net().state_dict().items()}
    torch.save({"state_dict": state, "epoch": torch.tensor(3), "note": "x"}, tmp_path / "w.pth")
    found = weights.read(tmp_path / "w.pth")
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    weights.fit_by_name(other, found, "w.pth")
    assert torch.equal(other.state_dict()["0.weight"], net().state_dict()["0.weight"])


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, "bomb.pth")
    with pytest.raises(WeightsError, match="could run code; save the network's state_dict"):
        weights.read(Path("bomb.pth"))
    assert not Path("exploded").exists()


def test_helpful_errors(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        weights.read(tmp_path / "none.pth")
    (tmp_path / "short.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(WeightsError, match="a damaged safetensors file"):
        weights.read(tmp_path / "short.safetensors")
    torch.save(net().state_dict(), tmp_path / "w.pth")
    (tmp_path / "short.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:200])
    with pytest.raises(WeightsError, match=r"cannot be read|could run code"):
        weights.read(tmp_path / "short.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="no state dict in it; it holds epoch"):
        weights.read(tmp_path / "empty.pth")


def test_what_does_not_fit_is_named() -> None:
    state = net().state_dict()
    state["3.weight"] = torch.zeros(5, 4)
    state["more"] = torch.zeros(1)
    del state["3.bias"]
    with pytest.raises(
        WeightsError,
        match=r"1 shapes differ, first 3.weight: \(5, 4\) in the file, \(2, 4\) in the network; "
        r"1 keys are missing, first 3.bias; 1 keys are not the network's, first more",
    ):
        weights.fit_by_name(net(), state, "w")


def test_by_order_pairs_by_shape_and_names_the_first_that_differs(tmp_path: Path) -> None:
    renamed = {f"x{i}": t for i, (n, t) in enumerate(net().state_dict().items()) if not n.endswith("tracked")}
    save_file(renamed, tmp_path / "w.safetensors")
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    pairs = weights.fit_by_order(other, renamed, "w")
    assert pairs[0] == ("x0", "0.weight")
    assert all(torch.equal(renamed[a], other.state_dict()[b]) for a, b in pairs)
    renamed["x0"] = torch.zeros(4, 3, 1, 1)
    with pytest.raises(
        WeightsError, match=r"x0 is \(4, 3, 1, 1\), but 0.weight in its place is \(4, 3, 3, 3\)"
    ):
        weights.fit_by_order(other, renamed, "w")
    renamed.popitem()
    renamed["x0"] = torch.zeros(4, 3, 3, 3)
    with pytest.raises(WeightsError, match=r"7 tensors in the file, 8 in the network"):
        weights.fit_by_order(other, renamed, "w")
