"""The command line. Daily verbs at the root, nouns below; other packages add theirs through `genward.commands`."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from genward.cli import common, daily, dataset, demo, model, plugin, policy, tenant
from genward.errors import GenwardError

_mounted: set[str] = set()
root = typer.Typer(
    name="genward",
    help="Train, seal, serve and govern generative models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"genward {version('genward')}")
        raise typer.Exit


@root.callback()
def _global(
    state: Annotated[
        Path | None, typer.Option(help="State folder; else $GENWARD_STATE, else .genward.", show_default=False)
    ] = None,
    json: common.JsonFlag = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it.")] = False,
) -> None:
    common.use_state(state)
    common.settings.json = json


daily.add_to(root)
root.command("demo")(demo.demo)
root.add_typer(dataset.app, name="dataset")
root.add_typer(model.app, name="model")
root.add_typer(policy.app, name="policy")
root.add_typer(tenant.tenant_app, name="tenant")
root.add_typer(tenant.key_app, name="key")
root.add_typer(plugin.app, name="plugin")


def command_line() -> typer.Typer:
    """The whole command line: ours, and what other packages add. A lone command of its point's own name is a verb."""
    for point in entry_points(group="genward.commands"):
        if point.name in _mounted:
            continue
        _mounted.add(point.name)
        app = point.load()
        commands = app.registered_commands
        if len(commands) == 1 and commands[0].name == point.name:
            root.registered_commands.append(commands[0])
        else:
            root.add_typer(app, name=point.name)
    return root


def main() -> None:
    """Run the command line. Exit codes: 0 ok, 1 check failed, 2 usage, 3 denied, 4 not found, 5 integrity."""
    try:
        command_line()()
    except GenwardError as error:
        sys.exit(common.report(error))
    except KeyboardInterrupt:
        print("genward: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
