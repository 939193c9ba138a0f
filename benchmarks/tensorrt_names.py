"""Which TensorRT names each published release holds: the table that tests/runtime/test_trt_names.py reads.

    pip download --no-deps tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.3.0 ...
    python -m benchmarks.tensorrt_names WHEEL...

A wheel of the Python bindings holds one library, and the names it defines are strings in it; neither a GPU nor
TensorRT's own libraries are needed. true: it is a string of its own; false: it is nowhere; null: it is the end of a
longer one (linkers let "INT8" share the bytes of "UINT8"), which proves nothing. That a name is in the library does
not say in which class; that part is tested with the tensorrt_rtx that is installed.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

from edgeprune.artifact import sha256, write_atomically
from edgeprune.runtime import trt

TABLE = Path(__file__).parents[1] / "tests" / "runtime" / "tensorrt_names.json"


def main() -> None:
    table: dict[str, object] = {}
    for word in sys.argv[1:]:
        wheel = Path(word)
        held = _strings(wheel)
        owners = {owner: _holds(held, owner) for owner in trt.names()}
        members = {f"{o}.{m}": _holds(held, m) for o, names in trt.names().items() for m in names}
        release = wheel.name.split("-")[1]
        table[release] = {"wheel": wheel.name, "sha256": sha256(wheel), "names": {**owners, **members}}
    write_atomically(TABLE, json.dumps(table, indent=1, sort_keys=True).encode() + b"\n")


def _strings(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        library = next(n for n in archive.namelist() if re.search(r"(^|/)tensorrt\.(.*\.)?so$", n))
        data = archive.read(library)
    return {word.decode() for word in re.findall(rb"[A-Za-z_][A-Za-z0-9_]{2,}(?=\0)", data)}


def _holds(held: set[str], name: str) -> bool | None:
    if name in held:
        return True
    return None if any(word.endswith(name) for word in held) else False


if __name__ == "__main__":
    main()
