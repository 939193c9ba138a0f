"""The images that differ most after an export, small, inside the page: a name alone does not say what is wrong.

What cannot be found any more, or not be read, is left out.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune import decoding
from edgeprune.errors import EdgePruneError
from edgeprune.report.facts import Facts

SIDE = 96  # pixels


def worst(run: Facts, meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a file's worst images, answers by name, each with `picture`, a data URI or ""."""
    parity = meta.get("parity") or {}
    folder = meta.get("parity_folder") or run.config.get("target") or ""
    rows = [dict(row) for row in parity.get("worst", ()) if isinstance(row, Mapping)]
    classes = list(meta.get("classes") or ())
    for row in rows:
        for key in ("reference", "candidate"):
            if isinstance(row.get(key), int) and row[key] < len(classes):
                row[key] = classes[row[key]]
        row["picture"] = thumbnail(Path(folder), str(row["image"])) if folder and row.get("image") else ""
    return rows


def thumbnail(root: Path, name: str) -> str:
    """The image `name` below a folder or in a zip, at most 96 pixels a side, as a data URI; "" without it."""
    try:
        picture = decoding.open_rgb(root, name)
    except (EdgePruneError, OSError):
        return ""
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
