import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeprune import images
from edgeprune.errors import DataError
from edgeprune.images import ImageRef, Preprocess, UnreadableImage


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A smooth picture, so that JPEG changes little."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 / width, y * 255 / height, np.full_like(x, 40 * (seed % 6))], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def saved(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or photo()).save(path, **options)  # type: ignore[arg-type]
    return path


def zipped(folder: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
    return to


def pixels(path: Path) -> np.ndarray:
    image = images.open_rgb(ImageRef(path.parent, path.name))
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# --- finding


@pytest.mark.parametrize("packed", [False, True])
def test_single_folders_are_entered_and_the_first_level_is_the_class(tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "d"
    for name in ("set/photo/cat/1.jpg", "set/photo/cat/deep/2.png", "set/photo/dog/1.webp", "set/README.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x") if name.endswith("txt") else saved(path)
    for junk in ("__MACOSX/set/photo/cat/._1.jpg", ".DS_Store", "set/photo/cat/._1.jpg", "set/Thumbs.db"):
        (root / junk).parent.mkdir(parents=True, exist_ok=True)
        (root / junk).write_bytes(b"junk")
    refs = images.find(zipped(root, tmp_path / "d.zip") if packed else root)
    assert [(r.name, r.label) for r in refs] == [
        ("set/README.txt", None),
        ("set/photo/cat/1.jpg", "cat"),
        ("set/photo/cat/deep/2.png", "cat"),
        ("set/photo/dog/1.webp", "dog"),
    ]
    assert images.classes(refs) == ("cat", "dog")


def test_images_beside_folders_have_no_class(tmp_path: Path) -> None:
    saved(tmp_path / "1.jpg")
    saved(tmp_path / "cat" / "2.jpg")
    assert [r.label for r in images.find(tmp_path)] == [None, "cat"]


def test_a_link_to_a_parent_does_not_go_round_for_ever(tmp_path: Path) -> None:
    saved(tmp_path / "cat" / "1.jpg")
    saved(tmp_path / "dog" / "1.jpg")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    assert len(images.find(tmp_path)) == 2


def test_helpful_errors_of_find(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder, zip"):
        images.find(tmp_path / "none")
    with pytest.raises(DataError, match=r"no images there \(it is empty\); expected JPEG, PNG"):
        images.find(tmp_path)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"no images there \(1 other files\)"):
        images.find(tmp_path)
    with pytest.raises(DataError, match="neither a folder nor a whole zip"):
        images.find(tmp_path / "notes.md")
    whole = zipped(saved(tmp_path / "z" / "1.jpg").parent, tmp_path / "z.zip")
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(DataError, match="neither a folder nor a whole zip"):
        images.find(whole)


# --- opening


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp"])
def test_the_four_formats(tmp_path: Path, ending: str) -> None:
    found = pixels(saved(tmp_path / f"a.{ending}", quality=95))
    assert found.shape == (30, 40, 3)
    assert np.abs(found - np.asarray(photo()).astype(int)).mean() < 3


def test_greyscale_and_bilevel(tmp_path: Path) -> None:
    grey = pixels(saved(tmp_path / "l.jpg", photo().convert("L")))
    assert (grey[..., 0] == grey[..., 2]).all()
    assert set(np.unique(pixels(saved(tmp_path / "1.png", photo().convert("1"))))) == {0, 255}


def test_cmyk_is_not_inverted(tmp_path: Path) -> None:
    found = pixels(saved(tmp_path / "c.jpg", photo().convert("CMYK"), quality=95))
    assert np.abs(found - np.asarray(photo()).astype(int)).mean() < 6


def test_16_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
    for ending in ("png", "tif"):
        found = pixels(saved(tmp_path / f"w.{ending}", Image.fromarray(ramp)))
        assert (found[0, :, 1] == np.arange(256)).all()


def test_ranges_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="32-bit pixels have no agreed range"):
        pixels(saved(tmp_path / "i.tif", Image.fromarray(np.full((4, 4), 70000, np.int32))))
    with pytest.raises(UnreadableImage, match="floating-point pixels"):
        pixels(saved(tmp_path / "f.tif", Image.fromarray(np.ones((4, 4), np.float32))))


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255
    found = pixels(saved(tmp_path / "a.png", Image.fromarray(rgba)))
    assert (found[:2] == 0).all()
    assert (found[2:] == 255).all()
    palette = Image.fromarray(rgba[..., 3]).convert("P")
    found = pixels(saved(tmp_path / "p.png", palette, transparency=palette.getpixel((0, 3))))
    assert (found[2:] == 255).all()
    assert (pixels(saved(tmp_path / "q.png", photo().convert("P")))[..., 0] >= 0).all()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_exif_rotation(tmp_path: Path, turn: int, ending: str) -> None:
    upright = photo(48, 32)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[turn]) if turn in undo else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    found = pixels(saved(tmp_path / f"a.{ending}", stored, exif=exif))
    assert found.shape == (32, 48, 3)
    assert np.abs(found - np.asarray(upright).astype(int)).mean() < 6


def test_broken_exif_keeps_the_pixels(tmp_path: Path) -> None:
    assert pixels(saved(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")).shape == (
        30,
        40,
        3,
    )


def test_truncated_and_foreign_files_are_unreadable(tmp_path: Path) -> None:
    for ending in ("jpg", "png", "webp", "bmp"):
        path = saved(tmp_path / f"a.{ending}", photo(200, 200))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UnreadableImage, match=f"a.{ending}: "):
            pixels(path)
    (tmp_path / "b.jpg").write_bytes(b"hello")
    with pytest.raises(UnreadableImage, match=r"b.jpg: not an image"):
        pixels(tmp_path / "b.jpg")
    (tmp_path / "e.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImage):
        pixels(tmp_path / "e.jpg")
    # A decoder that would start another program is never reached, whatever the ending says.
    (tmp_path / "g.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(UnreadableImage, match="not an image"):
        pixels(tmp_path / "g.png")


def test_a_damaged_zip_member_is_unreadable(tmp_path: Path) -> None:
    saved(tmp_path / "d" / "1.bmp")
    saved(tmp_path / "d" / "2.bmp")
    path = zipped(tmp_path / "d", tmp_path / "d.zip")
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    refs = images.find(path)
    with pytest.raises(UnreadableImage, match="CRC"):
        images.open_rgb(refs[0])
    assert images.open_rgb(refs[1]).size == (40, 30)


# --- resizing, normalising


@pytest.mark.parametrize(("size", "shown"), [(224, 256), (224, 232), (32, 32), (299, 342)])
@pytest.mark.parametrize("shape", [(300, 200), (201, 333), (50, 50), (640, 427)])
def test_geometry_is_torchvisions(size: int, shown: int, shape: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    picture = photo(*shape)
    reference = v2.Compose([v2.Resize(shown), v2.CenterCrop(size)])(picture)
    assert (
        images.resize(picture, Preprocess((size, size), crop=size / shown)) == np.asarray(reference)
    ).all()


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 90)] * 4, st.floats(0.3, 1.0))
def test_resize_always_fills_the_size(width: int, height: int, h: int, w: int, crop: float) -> None:
    assert images.resize(photo(width, height), Preprocess((h, w), crop=crop)).shape == (h, w, 3)


def test_normalise_against_float64() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    pre = Preprocess((6, 7), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    expected = ((batch.astype(np.float64) / 255 - pre.mean) / pre.std).transpose(0, 3, 1, 2)
    found = images.normalise(batch, pre)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_large_jpeg_is_decoded_smaller_but_looks_the_same(tmp_path: Path) -> None:
    ref = ImageRef(tmp_path, saved(tmp_path / "a.jpg", photo(1600, 1200), quality=95).name)
    assert images.open_rgb(ref, (64, 64)).size == (200, 150)
    pre = Preprocess((32, 32))
    full = images.resize(images.open_rgb(ref), pre).astype(int)
    assert np.abs(images.load(ref, pre).astype(int) - full).max() <= 4


def test_preprocess_json_and_helpful_errors() -> None:
    pre = Preprocess((3, 4), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bicubic", 0.9)
    assert Preprocess.from_json(pre.to_json()) == pre
    with pytest.raises(DataError, match="expected size, mean, std"):
        Preprocess.from_json({"size": [3, 4]})
    with pytest.raises(DataError, match="did you mean 'bicubic'"):
        Preprocess((3, 4), interpolation="bicubik")
    with pytest.raises(DataError, match="at least 1 pixel"):
        Preprocess((0, 4))
    with pytest.raises(DataError, match="three numbers"):
        Preprocess((4, 4), std=(0.0, 1.0, 1.0))
    with pytest.raises(DataError, match="share of the short side"):
        Preprocess((4, 4), crop=0.0)


# --- reading many


@pytest.mark.parametrize("packed", [False, True])
def test_batches_skip_count_and_list_the_bad(tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "d"
    for i in range(7):
        saved(root / f"{i}.png", photo(seed=i))
    (root / "3.png").write_bytes(b"no")
    refs = images.find(zipped(root, tmp_path / "d.zip") if packed else root)
    skipped: list[str] = []
    found = list(images.batches(refs, Preprocess((8, 8)), 4, skipped))
    assert [a.shape for a, _ in found] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    assert [r.name for _, group in found for r in group] == [
        "0.png",
        "1.png",
        "2.png",
        "4.png",
        "5.png",
        "6.png",
    ]
    assert len(skipped) == 1
    assert "3.png: not an image" in skipped[0]


def test_all_bad_is_an_error(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"none of the 3 files can be read as an image; the first: .*0.png"):
        list(images.batches(images.find(tmp_path), Preprocess((8, 8)), 2))


def test_a_zip_replaced_between_two_reads_is_read_anew(tmp_path: Path) -> None:
    refs = []
    for seed in (0, 3):
        saved(tmp_path / "d" / "1.bmp", photo(seed=seed))
        refs = images.find(zipped(tmp_path / "d", tmp_path / "d.zip"))
        assert np.asarray(images.open_rgb(refs[0]))[0, 0, 2] == 40 * seed


def test_torch_is_not_needed() -> None:
    import subprocess

    blocked = (
        "import sys; sys.modules['torch'] = None\n"
        "import edgeprune.images, edgeprune.run, edgeprune.progress, edgeprune.data.cache"
    )
    subprocess.run([sys.executable, "-c", blocked], check=True)


def test_reading_stops_when_the_reader_does(tmp_path: Path) -> None:
    saved(tmp_path / "1.png")
    seen: list[int] = []
    reader = images.ahead(seen.append, range(10_000), 2)
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert len(seen) < 100
