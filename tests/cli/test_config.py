"""A TOML file gives defaults by field name; what is typed wins; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from edgeprune.cli import config
from edgeprune.cli.options import Request, application
from edgeprune.errors import UsageError


def parse(*words: str) -> Any:
    answer = typer.main.get_command(application()).main(args=list(words), standalone_mode=False)
    assert isinstance(answer, Request)
    return answer.options


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return str(path)

    return write


RECIPE = """
target = "camera"
force = true
steps = 40
[adapt]
model = "timm:resnet18"
steps = 100
lr = 1
mean = [0.5, 0.4, 0.3]
size = 64
trust = ["m:f", "m:g"]
set = {temperature = 2.5, hard = true}
[prune]
macs = 0.4
iterations = 3
"""


def test_a_section_overrules_the_top_and_a_flag_overrules_both(toml: Any) -> None:
    path = toml(RECIPE)
    options = parse("adapt", "--config", path)
    assert (options.model, options.target, options.force) == ("timm:resnet18", Path("camera"), True)
    assert (options.steps, options.lr, options.mean, options.size) == (100, 1.0, "0.5,0.4,0.3", 64)
    assert (options.trust, options.set) == (("m:f", "m:g"), ("temperature=2.5", "hard=true"))
    options = parse("adapt", "other", "--steps", "7", "--no-force", "--config", path, "--trust", "only:this")
    assert (options.model, options.steps, options.force, options.trust) == ("other", 7, False, ("only:this",))


def test_one_file_serves_several_commands(toml: Any) -> None:
    options = parse("prune", "runs/a", "--config", toml(RECIPE))
    assert (options.macs, options.iterations, options.target) == ("0.4", 3, Path("camera"))
    assert parse("export", "runs/a", "--config", toml(RECIPE)).force


def test_a_dash_in_a_key_is_an_underscore(toml: Any) -> None:
    assert parse("adapt", "m", "--config", toml("dry-run = true")).dry_run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("targt = 'x'", "recipe.toml: no option is called 'targt': did you mean 'target'"),
        ("[adapt]\nmacs = 0.4", r"recipe.toml \[adapt\]: no option is called 'macs': "),
        ("[adpt]\nsteps = 4", "no option is called 'adpt'"),
        ("[prune]\nstepz = 4", r"recipe.toml \[prune\]: no option is called 'stepz'"),
        ("[adapt]\nsteps = 2.5", "steps: 2.5 is a float; expected a whole number"),
        ("[adapt]\nsteps = true", "steps: True is a bool; expected a whole number"),
        ("force = 'yes'", "force: 'yes' is a str; expected true or false"),
        ("target = 3", "target: 3 is a int; expected a path as a string"),
        ("steps = ", "not TOML"),
    ],
)
def test_helpful_errors(toml: Any, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config.read(Path(toml(text)), "adapt")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory; expected a TOML file"):
        config.read(tmp_path / "none.toml", "adapt")
