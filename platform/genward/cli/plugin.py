"""`genward plugin`: list what is loaded and why not, write a new plugin, check one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from genward.cli import common
from genward.errors import CheckFailed, UsageError

app = typer.Typer(help="Families, codecs and policies that are installed.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """Every installed plugin, where it comes from, and why any did not load."""
    plugins = common.open_platform().plugins
    rows = [
        {
            "name": info.name,
            "distribution": info.distribution,
            "version": info.version,
            "status": info.status,
            "reason": info.reason or None,
            "brings": ", ".join(key for key, owner in plugins.owners.items() if owner == info) or None,
        }
        for info in plugins.infos
    ]
    common.show(rows, "plugins")


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Distribution name, for example acme-flows.")],
    into: Annotated[Path, typer.Option(help="Parent folder.")] = Path(),
) -> None:
    """Write a plugin package with one family, one policy and a test that runs the contract suites."""
    from genward.cli.scaffold import write_plugin

    folder = write_plugin(name, into)
    common.show({"wrote": str(folder)})
    common.say(f"next: pip install -e {folder} && genward plugin check {name}")


@app.command("check")
def check(name: Annotated[str, typer.Argument(help="Distribution name of an installed plugin.")]) -> None:
    """Run the contract suites on every family, policy and attacker a distribution brings."""
    from genward import testing
    from genward.plugins import Plugins

    plugins = Plugins.load([name])
    if plugins.broken:
        raise CheckFailed(plugins.broken[0].reason, where=name, remedy="see the traceback in `genward doctor`")
    found: list[Any] = [*plugins.families.values(), *plugins.policies.values(), *plugins.attackers.values()]
    if not found:
        raise UsageError("brings no family, no policy and no attacker", where=name)
    common.show([{"name": cls.name, "passed": list(testing.check(cls))} for cls in found], "checks")
