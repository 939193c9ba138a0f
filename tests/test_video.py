"""Videos and lists as sets of images, with real videos that are written here."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprune import images, video
from edgeprune.data import cache, folder
from edgeprune.errors import DataError, MissingHere
from edgeprune.images import Preprocess

PRE = Preprocess((32, 48))


def clip(path: Path, seconds: float = 3.0, rate: int = 10, first: int = 20) -> Path:
    """Frame i is grey of value `first` + 5 i."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"g": "7"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 32, "yuv420p", 4_000_000
        stream.time_base = Fraction(1, rate)
        for i in range(round(seconds * rate)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), first + 5 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey(image: Any) -> float:
    return float(np.asarray(image).mean())


def test_a_frame_every_half_second_at_its_moment(tmp_path: Path) -> None:
    refs = images.find(clip(tmp_path / "camera.mp4"))
    assert [r.name for r in refs] == [f"camera.mp4/{i / 2:09.3f}s" for i in range(6)]
    found = [grey(images.open_rgb(r)) for r in refs]
    assert found == pytest.approx([20 + 25 * i for i in range(6)], abs=4)  # every fifth frame
    assert images.open_rgb(refs[0]).size == (48, 32)
    backwards = [grey(images.open_rgb(r)) for r in reversed(refs)]
    assert backwards == found[::-1]  # sought, not read on


def test_a_folder_of_videos_and_images(tmp_path: Path) -> None:
    clip(tmp_path / "d" / "cat" / "a.avi", 1.0)
    clip(tmp_path / "d" / "dog" / "b.mkv", 0.4, first=100)
    Image.new("RGB", (9, 9)).save(tmp_path / "d" / "dog" / "c.png")
    (tmp_path / "d" / "dog" / "broken.mp4").write_bytes(b"no video" * 50)
    pixels = folder.labelled(tmp_path / "d", PRE, ("cat", "dog"), tmp_path / "c")
    assert pixels.names == [
        "cat/a.avi/00000.000s",
        "cat/a.avi/00000.500s",
        "dog/b.mkv/00000.000s",
        "dog/c.png",
    ]
    assert pixels.labels is not None
    assert pixels.labels.tolist() == [0, 0, 1, 1]
    assert len(pixels.skipped) == 1
    assert "broken.mp4: not a video that can be read" in pixels.skipped[0]


def test_frames_are_cached_until_the_video_changes(tmp_path: Path) -> None:
    file = clip(tmp_path / "v.mp4", 1.0)
    first = folder.unlabelled(file, PRE, tmp_path / "c")
    assert isinstance(cache.open_rows(images.find(file), PRE, tmp_path / "c").rows, np.memmap)
    clip(file, 1.0, first=150)
    second = folder.unlabelled(file, PRE, tmp_path / "c")
    assert first.names == second.names
    assert float(second.take(_all(2)).float().mean() - first.take(_all(2)).float().mean()) > 100


def _all(count: int) -> Any:
    import torch

    return torch.arange(count)


def test_a_broken_video_says_so(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "bad.mp4").write_bytes(b"x" * 300)
    with pytest.raises(DataError, match=r"bad.mp4: not a video that can be read"):
        folder.unlabelled(tmp_path / "bad.mp4", PRE, tmp_path / ".c")


def test_without_a_decoder_videos_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"x" * 300)
    with pytest.raises(DataError, match=r"there is no such folder, zip, .txt list or video"):
        images.find(tmp_path / "none.mp4")
    monkeypatch.setattr(video, "available", lambda: False)
    with pytest.raises(
        MissingHere, match=r"bad.mp4 needs av, which is not installed .* 'edgeprune\[video\]'"
    ):
        images.find(tmp_path / "bad.mp4")
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")  # beside images a video is skipped, and says so
    lost: list[str] = []
    assert len(list(images.batches(images.find(tmp_path), PRE, 4, lost))) == 1
    assert len(lost) == 1
    assert "pip install 'edgeprune[video]'" in lost[0]


def test_videos_need_no_torch_and_nothing_until_used() -> None:
    code = "import sys, edgeprune.images; sys.exit(any(m in sys.modules for m in ('av', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- lists


def listed(tmp_path: Path, text: str) -> Path:
    for name in ("in/cat/1.png", "in/dog/2.png", "out/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    file = tmp_path / "in" / "list.txt"
    file.write_text(text, "utf-8")
    return file


def test_a_list_names_images_from_its_folder(tmp_path: Path) -> None:
    refs = images.find(listed(tmp_path, "\ufeffdog/2.png\n\n# a comment\n cat/1.png \ncat/../dog/2.png\n"))
    assert [(r.name, r.label) for r in refs] == [("cat/1.png", "cat"), ("dog/2.png", "dog")]
    assert [images.open_rgb(r).size for r in refs] == [(9, 9)] * 2


def test_a_list_names_images_elsewhere(tmp_path: Path) -> None:
    refs = images.find(listed(tmp_path, f"cat/1.png\n../out/3.png\n{tmp_path}/in/dog/2.png\nlost.png"))
    assert [str(r) for r in refs] == [
        str(tmp_path / n) for n in ("in/cat/1.png", "in/dog/2.png", "in/lost.png", "out/3.png")
    ]
    pixels = folder.unlabelled(tmp_path / "in" / "list.txt", PRE, tmp_path / "c")
    assert len(pixels) == 3
    assert len(pixels.skipped) == 1
    assert "lost.png: " in pixels.skipped[0]


def test_helpful_errors_of_lists(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"list.txt: none of its 2 files exists, the first is .*a.png; expected one path"
    ):
        images.find(listed(tmp_path, "a.png\nb.png"))
    with pytest.raises(DataError, match=r"list.txt: it is empty; expected one path a line"):
        images.find(listed(tmp_path, "# nothing\n"))
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataError, match=r"x.txt: not a list of images"):
        images.find(tmp_path / "x.txt")
