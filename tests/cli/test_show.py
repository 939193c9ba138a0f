"""Results print as facts and tables within the terminal's width, with the unit that a key implies."""

from __future__ import annotations

import importlib
import io
from typing import Any

import pytest
from rich.console import Console

from edgeprune.cli import show
from edgeprune.cli.options import COMMANDS
from edgeprune.report import numbers

FACTS: dict[str, Any] = {
    "run": "runs/prune-resnet50-1",
    "accuracy_before": 0.8125,
    "macs": 4_089_000_000,
    "file_bytes": 3_451_984,
    "latency_ms": {"p50": 1.2345, "ci": {"low": 1.1}},
    "layers": [
        {"name": "[red]conv1[/red]", "old": 64, "new": 24},
        {"name": "x" * 90, "old": 512, "new": None},
    ],
    "plan": None,
    "warnings": ["printed before"],
    "next": "edgeprune export runs/prune-resnet50-1 --images " + "d/" * 40,
}


def printed(facts: dict[str, Any], width: int) -> list[str]:
    stream = io.StringIO()
    show.result(facts, Console(file=stream, width=width))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 160])
def test_everything_fits_the_terminal_save_the_command_to_copy(width: int) -> None:
    lines = printed(FACTS, width)
    assert lines[-1].strip() == FACTS["next"]
    assert all(len(line) <= width for line in lines[:-1])


def test_units_and_plain_text() -> None:
    text = "\n".join(printed(FACTS, 120))
    for said in ("81.2%", "4.09 G", "3.3 MiB", "1.234", "[red]conv1[/red]", "MACs"):
        assert said in text
    assert "printed before" not in text
    assert "Plan" not in text


@pytest.mark.parametrize(
    ("key", "item", "said"),
    [
        ("macs", 0.4, "40.0%"),
        ("params", 1_200_000, "1.2 M"),
        ("file_bytes", 512, "512 B"),
        ("p50_ms", 0.0123, "0.0123 ms"),
        ("p50_ms", 1234.5, "1234 ms"),
        ("steps", 300, "300"),
        ("max_abs", 1.25e-7, "1.25e-07"),
        ("ok", True, "yes"),
        ("accuracy", None, "-"),
        ("nan", float("nan"), "nan"),
        ("names", ["a", "b"], "a, b"),
    ],
)
def test_a_value_carries_its_unit(key: str, item: Any, said: str) -> None:
    assert numbers.text(item, key) == said


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_examples_that_parse(command: str) -> None:
    import shlex

    import typer

    from edgeprune.cli.options import Request, application

    for example in importlib.import_module(f"edgeprune.cli.{command}").EXAMPLES:
        words = shlex.split(example)
        answer = typer.main.get_command(application()).main(args=words[1:], standalone_mode=False)
        assert words[0] == "edgeprune"
        assert isinstance(answer, Request)
        assert answer.command == command


def test_a_narrow_terminal_loses_the_spare_columns_first() -> None:
    rows = [{"name": "n" * 20, "macs": 1_000_000, "detail": "d" * 30}]

    def heads(width: int) -> str:
        stream = io.StringIO()
        show.table(rows, Console(file=stream, width=width), spare=("detail", "macs"))
        return stream.getvalue()

    assert "Detail" in heads(80)
    assert "MACs" in heads(80)
    assert "Detail" not in heads(40)
    assert "MACs" in heads(40)
    assert "MACs" not in heads(24)


def test_a_few_rows_that_are_too_wide_stand_side_by_side() -> None:
    rows = [{f"agreement_{n}": number / 4 for n in range(9)} for number in range(3)]

    def lines(rows: list[dict[str, Any]], width: int) -> list[str]:
        stream = io.StringIO()
        show.table(rows, Console(file=stream, width=width), title="Cuts")
        return [line.rstrip() for line in stream.getvalue().splitlines()]

    turned = lines(rows, 80)
    assert turned[0].split() == ["Cuts"]
    assert [line.split() for line in turned[1:]] == [
        ["Agreement", str(n), "0.0%", "25.0%", "50.0%"] for n in range(9)
    ]
    assert "Agreement 0   Agreement 1" in " ".join(lines(rows, 200))
    assert len(lines(rows * 4, 80)) != len(turned)  # many rows stay rows
    wordy = [{"name": name, "means": "a long sentence " * 8} for name in "ab"]
    assert " Name   Means" in lines(wordy, 80)  # and so do rows that are wide side by side too
