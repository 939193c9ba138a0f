"""ONNX Runtime's words for a file it does not open -> one line: what is wrong, whose fault it is, the remedy.

Its codes do not tell the two apart (FAIL stands for a newer opset and for a wrong attribute alike), so its sentences
are read; a sentence that is not known here is passed on without its code and its source lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edgeprune.errors import BrokenModel, EdgePruneError, MissingHere, ModelError


class CannotRun(MissingHere, ModelError):
    """This ONNX Runtime does not run the file; another one may, and another file of the same network may here."""


_NOISE = (
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : ",
    r"^Load model from .*? failed:\s*",
    r"^/?\S+\.(?:cc|h):\d+ (?:\S+ )*?\S+\(.*?\) (?=[A-Z])",  # its own source line and function
    r"^\S+\.(?:cc|h):\d+ \w+ ",
)
Told = Callable[[re.Match[str], str], str]
_MISSING: tuple[tuple[str, Told], ...] = (
    (
        r'\("([^"]*)", (\w+),.*No Op(?:erator)? registered for \w+ with domain_version of (\d+)',
        lambda m, here: (
            f"operator {m[2]} of node {m[1]} is not known to {here} at opset {m[3]}: "
            "replace that layer, or export it again"
        ),
    ),
    (
        r"(?:Fatal error: )?(\S+?):(\w+)\(-?\d+\) is not a registered function/op",
        lambda m, here: (
            f"operator {m[1]}.{m[2]} is not known to {here}: replace that layer, or export it again"
        ),
    ),
    (
        r"Opset (\d+) is under development.*?till opset (\d+)",
        lambda m, here: f"opset {m[1]}; {here} knows up to {m[2]}: export it with --opset 20",
    ),
    (
        r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
        lambda m, here: (
            f"ONNX IR version {m[1]}; {here} reads up to {m[2]}: export it again, or install a newer one"
        ),
    ),
    (
        r"Could not find an implementation for (\S+?)(?:\(\d+\))? node with name '([^']*)'",
        lambda m, here: (
            f"{here} has no kernel for operator {m[1]} of node {m[2]} as it is here: export it again"
        ),
    ),
    (
        r"fallback to CPU EP has been explicitly disabled",
        lambda m, here: f"{here}: the provider does not run all of its operators: take --provider cpu",
    ),
)
_BROKEN: tuple[tuple[str, str], ...] = (
    (r"Protobuf parsing failed|No graph was found|ModelProto", "not a whole ONNX file"),
    (r"[Ee]xternal data", "its weights, which lie in a file of their own, are not beside it"),
    (
        r"ShapeInferenceError|TypeInferenceError|Type Error|[Ii]nvalid model|not a graph input|INVALID_GRAPH",
        "no valid graph",
    ),
)


def words(err: BaseException) -> str:
    """The sentence in ONNX Runtime's message, without code, file name and source line; at most 200 letters."""
    text = " ".join(str(err).split()) or type(err).__name__
    for noise in _NOISE:
        text = re.sub(noise, "", text)
    return text[:200]


def refusal(path: Path, err: BaseException, version: str) -> EdgePruneError:
    """What an ONNX file that does not open means: BrokenModel when the file is at fault, else CannotRun."""
    whole, here = " ".join(str(err).split()), f"ONNX Runtime {version}"
    for pattern, told in _MISSING:
        if match := re.search(pattern, whole):
            return CannotRun(f"{path}: {told(match, here)}")
    for pattern, told_plainly in _BROKEN:
        if re.search(pattern, whole):
            return BrokenModel(f"{path}: {told_plainly} ({words(err)}); export it again")
    return CannotRun(f"{path}: {here} cannot run it: {words(err)}; export it again")
