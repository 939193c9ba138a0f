"""The options dataclasses: each field has help, a default and a type that a shell and TOML can both write."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cli.options import COMMANDS, flags, single, typed_fields

FIELDS = [
    pytest.param(command, field, hint, id=f"{command}.{field.name}")
    for command, cls in COMMANDS.items()
    for field, hint in typed_fields(cls)
]


@pytest.mark.parametrize(("command", "field", "hint"), FIELDS)
def test_a_field_can_be_an_option(command: str, field: dataclasses.Field[Any], hint: Any) -> None:
    assert field.metadata["help"].endswith("."), "help is a sentence"
    assert field.default is not dataclasses.MISSING
    assert single(hint) in (bool, int, float, str, Path)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_two_fields_share_a_flag(command: str) -> None:
    words = [
        w for f, hint in typed_fields(COMMANDS[command]) for flag in flags(f, hint) for w in flag.split("/")
    ]
    assert len(words) == len(set(words))
    assert not {"--config", "-c", "--json", "--debug", "--help", "-h"} & set(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_need_no_user_and_nothing_can_be_changed(command: str) -> None:
    options = COMMANDS[command]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.anything = 1
