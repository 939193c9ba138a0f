"""What an ONNX file says of itself: classes, preprocessing, lineage. Read on the device, so without torch.

Each fact is one entry of the model's metadata_props, "edgeprune.<key>" -> JSON text; other tools ignore them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PREFIX = "edgeprune."


def to_props(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts (JSON values) -> metadata_props."""
    return {PREFIX + key: json.dumps(value, sort_keys=True) for key, value in facts.items()}


def from_props(props: Mapping[str, str]) -> dict[str, Any]:
    """metadata_props -> facts; entries of others, and entries that are not JSON, are left out."""
    facts: dict[str, Any] = {}
    for key, text in props.items():
        if key.startswith(PREFIX):
            try:
                facts[key.removeprefix(PREFIX)] = json.loads(text)
            except ValueError:
                continue
    return facts
