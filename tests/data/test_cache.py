import os
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprune import images
from edgeprune.data import cache
from edgeprune.data.cache import Cached, Streamed
from edgeprune.errors import DataError
from edgeprune.images import Preprocess

PRE = Preprocess((6, 8))


def make(root: Path, count: int = 5) -> Path:
    root.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (12, 9), (10 * i, i, 255 - i)).save(root / f"{i}.png")
    return root


def opened(root: Path, folder: Path, **more: int) -> Cached:
    return cache.open_rows(images.find(root), PRE, folder, **more)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often files were decoded: one entry for each set."""
    calls: list[int] = []
    real = images.load_all

    def load_all(refs, *more):  # type: ignore[no-untyped-def]
        calls.append(len(refs))
        return real(refs, *more)

    monkeypatch.setattr(cache, "load_all", load_all)
    return calls


def test_decoded_once_and_the_same_as_without(tmp_path: Path, counted: list[int]) -> None:
    root = make(tmp_path / "d")
    for _ in range(2):
        found = opened(root, tmp_path / "c")
        assert isinstance(found.rows, np.memmap)
        assert (found.rows == np.stack([images.load(r, PRE) for r in images.find(root)])).all()
    assert counted == [5]


def test_a_changed_file_time_or_geometry_is_decoded_anew(tmp_path: Path, counted: list[int]) -> None:
    root, folder = make(tmp_path / "d"), tmp_path / "c"
    opened(root, folder)
    Image.new("RGB", (12, 9), "red").save(root / "2.png")
    os.utime(root / "2.png", (1, 1))
    assert tuple(opened(root, folder).rows[2, 0, 0]) == (255, 0, 0)
    (root / "4.png").unlink()
    assert len(opened(root, folder).refs) == 4
    cache.open_rows(images.find(root), Preprocess((6, 8), crop=0.5), folder)
    assert counted == [5, 5, 4, 4]
    cache.open_rows(images.find(root), Preprocess((6, 8), mean=(0, 0, 0)), folder)  # not a matter of pixels
    assert len(counted) == 4


def test_the_time_alone_tells_a_change(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for time, colour in enumerate(("red", "blue")):
        Image.new("RGB", (12, 9), colour).save(tmp_path / "d" / "0.bmp")  # both files have the same size
        os.utime(tmp_path / "d" / "0.bmp", (time, time))
        found = opened(tmp_path / "d", tmp_path / "c")
        assert tuple(found.rows[0, 0, 0]) == ((255, 0, 0) if colour == "red" else (0, 0, 255))


def test_a_moved_zip_is_the_same_and_a_changed_one_is_not(tmp_path: Path, counted: list[int]) -> None:
    root = make(tmp_path / "d")
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in sorted(root.iterdir()):
                archive.write(file, file.name)
        opened(tmp_path / name, tmp_path / "c")
    assert counted == [5]
    Image.new("RGB", (12, 9), "red").save(root / "0.png")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(root / "0.png", "0.png")
    assert tuple(opened(tmp_path / "b.zip", tmp_path / "c").rows[0, 0, 0]) == (255, 0, 0)


@pytest.mark.parametrize("harm", ["shorter", "zeros", "index", "lost", "foreign index"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, harm: str) -> None:
    root, folder = make(tmp_path / "d"), tmp_path / "c"
    good = np.array(opened(root, folder).rows)
    rows, index = next(folder.glob("*.rows")), next(folder.glob("*.json"))
    if harm == "shorter":
        os.truncate(rows, 100)
    elif harm == "zeros":
        rows.write_bytes(bytes(rows.stat().st_size))
    elif harm == "index":
        index.write_text(index.read_text()[:-5])
    elif harm == "lost":
        rows.unlink()
    else:
        index.write_text('{"kept": [99], "skipped": [], "sums": [0]}')
    assert (np.array(opened(root, folder).rows) == good).all()


def test_the_skipped_are_remembered(tmp_path: Path, counted: list[int]) -> None:
    root = make(tmp_path / "d")
    (root / "1.png").write_bytes(b"no")
    (root / "notes.txt").write_text("no image either")
    for _ in range(2):
        found = opened(root, tmp_path / "c")
        assert [r.name for r in found.refs] == ["0.png", "2.png", "3.png", "4.png"]
        assert len(found.skipped) == 2
        assert "1.png: not an image" in found.skipped[0]
    assert counted == [6, 2, 2]  # those alone are tried again


def test_what_could_not_be_read_is_taken_when_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another system withheld for a moment has the same size and time afterwards."""
    root, real = make(tmp_path / "d"), images.load_all

    def withheld(refs, *more):  # type: ignore[no-untyped-def]
        for ref, row in real(refs, *more):
            yield ref, images.UnreadableImage("1.png: permission denied") if ref.name == "1.png" else row

    monkeypatch.setattr(cache, "load_all", withheld)
    assert len(opened(root, tmp_path / "c").refs) == 4
    monkeypatch.setattr(cache, "load_all", real)
    assert len(opened(root, tmp_path / "c").refs) == 5


def test_what_a_kill_left_behind_goes(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    old, new = (folder / f"{letter * 40}.part" for letter in "ab")
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    opened(make(tmp_path / "d"), folder)
    assert not old.exists()
    assert new.exists()  # another process may be writing it


@pytest.mark.parametrize("limit", [1 << 20, 10])
def test_all_bad_is_an_error_and_leaves_no_rows(tmp_path: Path, limit: int) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"1\.png: "):
        opened(tmp_path / "d", tmp_path / "c", limit=limit)
    assert not [p for p in (tmp_path / "c").iterdir() if p.suffix != ".lock"]


def test_what_does_not_fit_is_streamed(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    whole = np.array(opened(root, tmp_path / "c").rows)
    found = opened(root, tmp_path / "e", limit=5 * 6 * 8 * 3 - 1)
    assert isinstance(found.rows, Streamed)
    assert found.rows.shape == whole.shape
    for index in (slice(None), slice(1, 3), [4, 0, 4], np.array([2]), slice(0, 0)):
        assert (found.rows[index] == whole[index]).all()
    assert not list((tmp_path / "e").glob("*.rows"))


def test_a_full_disk_takes_the_speed_not_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "d")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert isinstance(opened(root, tmp_path / "c").rows, Streamed)
    assert not list((tmp_path / "c").glob("*.part"))
    (tmp_path / "file").write_text("x")
    assert isinstance(opened(root, tmp_path / "file" / "c").rows, Streamed)


def test_the_oldest_goes_first(tmp_path: Path) -> None:
    folder, one = tmp_path / "c", 5 * 6 * 8 * 3
    for number in range(3):
        opened(make(tmp_path / str(number)), folder, limit=3 * one)
    for age, rows in enumerate(sorted(folder.glob("*.rows"))):
        os.utime(rows, (age, age))
    oldest = sorted(folder.glob("*.rows"))[0]
    opened(make(tmp_path / "new"), folder, limit=3 * one)
    assert not oldest.exists()
    assert len(list(folder.glob("*.rows"))) == 3


def test_clear_removes_ours_only(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    opened(make(tmp_path / "d"), folder)
    (folder / "precious.json").write_text("mine")
    assert cache.size(folder) == cache.clear(folder) > 0
    assert [p.name for p in folder.iterdir()] == ["precious.json"]
    assert cache.clear(tmp_path / "none") == 0


def test_two_at_once_decode_once(tmp_path: Path, counted: list[int]) -> None:
    root = make(tmp_path / "d", 40)
    threads = [threading.Thread(target=opened, args=(root, tmp_path / "c")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [40]


def test_a_mapped_cache_outlives_its_file(tmp_path: Path) -> None:
    found = opened(make(tmp_path / "d"), tmp_path / "c")
    before = np.array(found.rows)
    cache.clear(tmp_path / "c")
    shutil.rmtree(tmp_path / "d")
    assert np.array_equal(np.asarray(found.rows), before)
