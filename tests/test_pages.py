"""The pages of numbers are what the scripts make of the committed rows."""

from __future__ import annotations

import json

import pytest

from benchmarks import accuracy, pages, pages_pruning, precision


@pytest.mark.parametrize("name", ["accuracy.md", "pruning.md", "precision.md"])
def test_no_number_is_typed_by_hand(name: str) -> None:
    if name == "accuracy.md":
        made = pages.page(accuracy.load())
    elif name == "pruning.md":
        made = pages_pruning.page()
    else:
        made = pages.precision_page(json.loads(precision.RESULTS.read_text()))
    assert (pages.DOCS / name).read_text() == made, f"run: python -m benchmarks.pages (docs/{name} is stale)"
