"""Every name of the catalogue leads to something that is there, and the help lists the same names."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping

import pytest

from edgeprune import catalog
from edgeprune.catalog import Entry
from edgeprune.cli.options import COMMANDS, NAMES, typed_fields
from edgeprune.errors import UsageError

TABLES: Mapping[str, Mapping[str, Entry]] = {
    "objective": catalog.OBJECTIVES,
    "method": catalog.METHODS,
    "score": catalog.SCORES,
    "runtime": catalog.RUNTIMES,
}
ENTRIES = [
    pytest.param(e, id=f"{table}-{name}") for table, entries in TABLES.items() for name, e in entries.items()
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_is_importable(entry: Entry) -> None:
    module, _, attribute = entry.where.partition(":")
    if entry.extra == "compress":
        pytest.importorskip("torch", reason="needs the compress extra")
    assert importlib.util.find_spec(module), f"{module} is in the catalogue and not in the package"
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_says_what_it_is(entry: Entry) -> None:
    assert entry.summary
    assert entry.needs <= {"source", "layers"}


def test_help_knows_every_table() -> None:
    tables = [
        v
        for v in vars(catalog).values()
        if isinstance(v, dict) and all(isinstance(e, Entry) for e in v.values())
    ]
    assert sorted(map(id, tables)) == sorted(map(id, NAMES.values()))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_names(command: str) -> None:
    from edgeprune.cli.options import _help

    for field, _ in typed_fields(COMMANDS[command]):
        said = re.findall(r"[\w-]+", _help(field))
        assert set(NAMES.get(field.name, {})) <= set(said)


def test_an_unknown_name_is_a_usage_error_that_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no objective is called 'mmc': did you mean 'mcc'"):
        catalog.load(catalog.OBJECTIVES, "mmc", "objective")
