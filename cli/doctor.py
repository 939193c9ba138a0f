"""`edgeprune doctor`: its examples, and how its result is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeprune.cli import show as page

if TYPE_CHECKING:
    from rich.console import Console

_REMEDIES = (
    "A remedy such as pip install 'edgeprune[cpu]' keeps the edgeprune that is installed here and adds what the extra "
    "names; to install edgeprune itself, in its checkout: pip install 'edgeprune[cpu] @ .'"
)
EXAMPLES = (
    "edgeprune doctor",
    "edgeprune doctor --clear-cache",
)


def show(facts: page.Facts, console: Console) -> None:
    """Print what `edgeprune.commands.doctor` returned: packages by extra, then what was tried."""
    page.pairs({key: facts[key] for key in ("version", "python", "machine")}, console)
    page.table(_by_extra(facts["packages"]), console, title="Packages")
    page.table(facts["runtimes"], console, title="Runtimes")
    page.table(facts["sensors"], console, title="Sensors")
    if any(p["extra"] and not p["version"] for p in facts["packages"]):
        console.print(_REMEDIES, style="dim", markup=False, highlight=False)
    page.pairs({f"cache {key}": item for key, item in facts["cache"].items()}, console)
    for complaint in facts["complaints"]:
        # Not as markup: a remedy such as 'edgeprune[cpu]' would lose its brackets.
        console.print(f"\ncomplaint: {complaint}", style="red", markup=False, highlight=False, soft_wrap=True)


def _by_extra(packages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for extra in dict.fromkeys(p["extra"] for p in packages):
        own = [p for p in packages if p["extra"] == extra]
        lost = [p["name"] for p in own if not p["version"]]
        rows.append(
            {
                "extra": extra or "(base)",
                "installed": ", ".join(f"{p['name']} {p['version']}" for p in own if p["version"]),
                "not installed": ", ".join(lost),
                "remedy": f"pip install 'edgeprune[{extra}]'" if lost and extra else "",
            }
        )
    return rows
