"""The pages of numbers are what the scripts make of the committed rows."""

from __future__ import annotations

import json

import pytest

from benchmarks import accuracy, pages, pages_claims, pages_pruning, pages_readme, pages_training, precision


@pytest.mark.parametrize("name", ["accuracy.md", "pruning.md", "claims.md", "precision.md", "training.md"])
def test_no_number_is_typed_by_hand(name: str) -> None:
    if name == "accuracy.md":
        made = pages.page(accuracy.load())
    elif name == "pruning.md":
        made = pages_pruning.page()
    elif name == "claims.md":
        made = pages_claims.page()
    elif name == "training.md":
        made = pages_training.page()
    else:
        made = pages.precision_page(json.loads(precision.RESULTS.read_text()))
    assert (pages.DOCS / name).read_text() == made, f"run: python -m benchmarks.pages (docs/{name} is stale)"


def test_the_numbers_of_the_readme_are_those_of_the_rows() -> None:
    text = pages_readme.README.read_text()
    assert text.count("<!-- numbers: ") == 3
    assert text == pages_readme.filled(text, accuracy.load()), "run: python -m benchmarks.pages"
    with pytest.raises(ValueError, match="pacs: the README shows rows of `auto` that are not there"):
        pages_readme.filled(text, [])


def test_only_seeds_that_both_sides_have_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = pages_claims.Claim("ours beats theirs", "ours", "theirs", "digits", "macs=0.5")
    monkeypatch.setattr(pages_claims, "CLAIMS", (claim,))
    rows = [
        {"stage": "prune", "task": "digits", "budget": "macs=0.5", "name": n, "seed": s, "chosen": c}
        for n, s, c in (("ours", 0, 99.0), ("ours", 1, 91.0), ("theirs", 0, 98.0))
    ]
    assert "| 1 | ours 99.0 | theirs 98.0 | +1.0" in "\n".join(pages_claims._claims(rows))


def test_a_margin_is_of_seeds_that_all_four_rows_have(monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = (pages_claims.Margin("ours", "theirs", f"macs={kept}") for kept in (0.3, 0.5))
    claim = pages_claims.Claim("it grows", low, high, "digits", "macs=0.3")
    monkeypatch.setattr(pages_claims, "CLAIMS", (claim,))
    found: dict[tuple[str, float], tuple[float, ...]] = {
        ("ours", 0.3): (80.0, 70.0),
        ("theirs", 0.3): (71.0, 9.0),
        ("ours", 0.5): (90.0, 90.0),
        ("theirs", 0.5): (86.0,),
    }
    rows = [
        {"stage": "prune", "task": "digits", "budget": f"macs={kept}", "name": n, "seed": s, "chosen": c}
        for (n, kept), values in found.items()
        for s, c in enumerate(values)
    ]
    line = pages_claims._claims(rows)[-1]
    assert "| 1 | ours over theirs at macs=0.3 9.0 | ours over theirs at macs=0.5 4.0 | +5.0" in line


@pytest.mark.parametrize(
    ("ours", "theirs", "least", "word"),
    [
        ([80.0], [79.0], 0.0, "yes"),
        ([79.0], [80.0], 0.0, "no"),
        ([79.0], [80.0], -1.0, "yes"),
        ([79.0, 81.0], [80.5], 0.0, "equal"),
        ([79.0, 81.0], [79.5], 0.0, "equal"),
        ([80.0], [80.0], 0.0, "equal"),
        ([79.9, 80.1], [79.5], 0.0, "yes"),
        ([79.0, 81.0], [81.0], -0.3, "equal"),
        ([79.0, 79.2], [79.9], -0.3, "no"),
        ([79.0, 81.0], [76.5], 4.0, "no"),
    ],
)
def test_a_claim_holds_when_the_difference_is_large_enough(
    ours: list[float], theirs: list[float], least: float, word: str
) -> None:
    assert pages_claims.verdict(ours, theirs, least)[1] == word


def test_a_loss_is_judged_by_how_it_varies_not_by_the_networks_it_is_of() -> None:
    before, after = [98.8, 97.8, 91.5], [95.8, 94.0, 87.9]
    assert pages_claims.verdict(after, before, -0.3)[1] == "equal"
    assert pages_claims.verdict(after, before, -0.3, paired=True)[1] == "no"


def test_regret_is_told_with_and_without_objectives_on_the_wrong_target() -> None:
    rows = [
        {"stage": "adapt", "task": task, "name": name, "regret": regret}
        for task, name, regret in (
            ("pacs", "mcc", 1.0),
            ("pacs", "swmmd", 9.0),
            ("pacs-partial", "mcc", 30.0),
            ("pacs-partial", "mcc+partial", 2.0),
            ("pacs-partial", "swmmd", 3.0),
            ("pacs-partial", "source", 4.0),
        )
    ]
    said = " ".join(pages._mean_regret([*rows, {"stage": "adapt", "task": "pacs", "name": "dan"}]))
    assert "2.50 over the 4 rows" in said
    assert f"{49 / 6:.2f} over all 6" in said
    assert pages._mean_regret([]) == []


def test_a_method_without_the_seed_of_most_says_where_it_began() -> None:
    rows = [
        {
            "stage": "prune",
            "task": "pacs",
            "budget": "macs=0.5",
            "name": n,
            "seed": s,
            "chosen": c,
            "before": b,
        }
        for n, s, c, b in (
            ("auto", 0, 79.0, 80.0),
            ("auto", 2, 60.0, 70.0),
            ("uniform", 0, 75.0, 80.0),
            ("itmc", 2, 65.0, 70.0),
        )
    ]
    assert pages_readme.comparable(rows) == [rows[0], rows[2], rows[3]]
    lines = pages_readme.methods("pacs", rows).splitlines()
    assert [line.split("|")[2].split(",")[0].strip() for line in lines[2:]] == [
        "80.0%",
        "79.0%",
        "75.0%",
        "65.0% of 70.0%",
    ]


def _timed(speedup: float, low: float, high: float) -> dict[str, object]:
    return {"speedup": {"speedup": speedup, "ci_low": low, "ci_high": high}}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([_timed(1.5, 1.4, 1.6)], "1.50x faster (99%: 1.40 to 1.60)"),
        ([_timed(1.5, 1.4, 1.6), _timed(1.3, 1.2, 1.7)], "1.40x faster (99%: 1.20 to 1.70)"),
        ([_timed(1.01, 0.99, 1.03)], "as fast (99%: as fast to 1.03x faster)"),
        ([_timed(0.8, 0.5, 0.99)], "1.25x slower (99%: 2.00x slower to as fast)"),
        ([_timed(0.5, 0.4, 0.8), {}], "2.00x slower (99%: 2.50x slower to 1.25x slower)"),
        ([{}], "not exported"),
    ],
)
def test_a_ratio_is_said_as_faster_slower_or_the_same(rows: list[dict[str, object]], said: str) -> None:
    assert pages_readme._fast(rows) == said
