"""The pages of numbers are what the scripts make of the committed rows."""

from __future__ import annotations

import json

import pytest

from benchmarks import accuracy, pages, pages_claims, pages_pruning, precision


@pytest.mark.parametrize("name", ["accuracy.md", "pruning.md", "claims.md", "precision.md"])
def test_no_number_is_typed_by_hand(name: str) -> None:
    if name == "accuracy.md":
        made = pages.page(accuracy.load())
    elif name == "pruning.md":
        made = pages_pruning.page()
    elif name == "claims.md":
        made = pages_claims.page()
    else:
        made = pages.precision_page(json.loads(precision.RESULTS.read_text()))
    assert (pages.DOCS / name).read_text() == made, f"run: python -m benchmarks.pages (docs/{name} is stale)"


@pytest.mark.parametrize(
    ("ours", "theirs", "least", "word"),
    [
        ([80.0], [79.0], 0.0, "yes"),
        ([79.0], [80.0], 0.0, "no"),
        ([79.0], [80.0], -1.0, "yes"),
        ([79.0, 81.0], [80.5], 0.0, "equal"),
        ([79.0, 81.0], [81.0], -0.3, "equal"),
        ([79.0, 79.2], [79.9], -0.3, "no"),
        ([79.0, 81.0], [76.5], 4.0, "no"),
    ],
)
def test_a_claim_holds_when_the_difference_is_large_enough(
    ours: list[float], theirs: list[float], least: float, word: str
) -> None:
    assert pages_claims.verdict(ours, theirs, least)[1] == word
