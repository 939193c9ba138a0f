"""The JSON Schema of what bench prints and writes, made from the dataclasses that write it.

docs/bench.schema.json is `document()`, of the whole; "#/$defs/Row" in it is of one row, as a line of bench.jsonl is:

python -m edgeprune.bench.schema > docs/bench.schema.json
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from edgeprune.bench.compare import Verdict
from edgeprune.bench.result import DOCUMENT, SCHEMA, BenchResult, Measured
from edgeprune.bench.statistics import Latency

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}
_NAMED = (Measured, Latency, Verdict)
_OPEN = {
    "config": ("runtime", "precision", "batch", "mode", "threads", "streams", "device", "input"),
    "host": (),
}


def document() -> dict[str, Any]:
    """The schema of what `edgeprune bench --json` prints and -o writes, draft 2020-12."""
    text = {"type": "string"}
    return {
        "$schema": DRAFT,
        "title": DOCUMENT,
        "description": "What edgeprune bench measured: a row an artefact, batch and number of threads.",
        "type": "object",
        "properties": {
            "schema": {"const": DOCUMENT},
            "results": {"type": "array", "items": {"$ref": "#/$defs/Row"}},
            "output": {"type": ["string", "null"], "description": "the file that -o named"},
            "warnings": {"type": "array", "items": text},
            "layers": {"type": "object", "description": "of --layer-table alone"},
        },
        "required": ["schema", "results", "output", "warnings"],
        "additionalProperties": False,
        "$defs": {"Row": _row(), **_named()},
    }


def row() -> dict[str, Any]:
    """The schema of one row, by itself."""
    return {"$schema": DRAFT, "title": SCHEMA, **_row(), "$defs": _named()}


def _named() -> dict[str, Any]:
    return {cls.__name__: _of_class(cls) for cls in _NAMED}


def _row() -> dict[str, Any]:
    body = _of_class(BenchResult)
    properties = {"schema": {"const": SCHEMA}, **body["properties"]}
    for name, required in _OPEN.items():
        properties[name] = {"type": "object", "required": sorted(required)}
    return {
        "description": "One measured row of edgeprune bench. A null has its sentence in `reasons`; it is never 0.",
        **body,
        "properties": properties,
        "required": ["schema", *body["required"]],
    }


def _of_class(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    return {
        "type": "object",
        "properties": {f.name: _of_hint(hints[f.name]) for f in fields},
        "required": [f.name for f in fields],
        "additionalProperties": False,
    }


def _of_hint(hint: Any) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS or hint is type(None):
        return {"type": _SCALARS.get(hint, "null")}
    if hint in _NAMED:
        return {"$ref": f"#/$defs/{hint.__name__}"}
    made: dict[Any, Callable[[], dict[str, Any]]] = {
        typing.Union: lambda: {"anyOf": [_of_hint(part) for part in inner]},
        types.UnionType: lambda: {"anyOf": [_of_hint(part) for part in inner]},
        tuple: lambda: {"type": "array", "items": _of_hint(inner[0])},
        typing.Literal: lambda: {"enum": list(inner)},
        Mapping: lambda: _mapping(_of_hint(inner[1])),
    }
    return made[origin]() if origin in made else {}


def _mapping(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", **({"additionalProperties": value} if value else {})}


if __name__ == "__main__":
    print(json.dumps(document(), indent=2))  # noqa: T201
