"""The exception tree is what its docstring draws, and every class is exported with an exit code."""

from __future__ import annotations

import inspect
import re

import pytest

from edgeprune import errors

CLASSES: dict[str, type[errors.EdgePruneError]] = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, errors.EdgePruneError) and cls.__module__ == errors.__name__
}


def drawn() -> dict[str, tuple[int, int]]:
    """Name -> (depth, exit code) as the module's docstring has them."""
    rows = re.findall(r"^( {4,})(\w+) +(\d+)  ", inspect.getdoc(errors) or "", re.MULTILINE)
    return {name: (len(spaces) // 2 - 2, int(code)) for spaces, name, code in rows}


def test_all_is_the_truth() -> None:
    functions = {
        n for n, f in vars(errors).items() if inspect.isfunction(f) and f.__module__ == errors.__name__
    }
    assert set(errors.__all__) == set(CLASSES) | functions


def test_the_tree_is_the_one_drawn() -> None:
    tree = drawn()
    assert set(tree) == set(CLASSES)
    for name, cls in CLASSES.items():
        depth = len([c for c in cls.__mro__ if issubclass(c, errors.EdgePruneError)]) - 1
        assert tree[name] == (depth, cls.exit_code), name


def test_helpful_errors() -> None:
    missing = errors.missing_package("torch", "compress", "adapt")
    assert str(missing) == "adapt needs torch, which is not installed here: pip install 'edgeprune[compress]'"
    assert missing.exit_code == 5
    assert errors.nearest("mmc", ["mcc", "shot"]) == "did you mean 'mcc'?"
    assert errors.nearest("zzz", ["mcc", "shot"]) == "the choices are mcc, shot"
    assert errors.nearest("zzz", ["mcc"]) == "the only one is 'mcc'"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_each_class_says_what_it_is(name: str) -> None:
    assert CLASSES[name].__doc__
