"""The command line. Daily verbs at the root, nouns below; other packages add theirs through `genward.commands`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated

import typer

from genward.cli import common, daily, dataset, demo, detect, evaluate, model, plugin, policy, tenant
from genward.errors import GenwardError, Interrupted, Unavailable, UsageError

_MISUSE: type[Exception] = typer.BadParameter.__mro__[1]  # what every mistake on the command line is
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
    for reason in common.broken:
        print(f"genward: {reason} (`genward doctor` shows where)", file=sys.stderr)


daily.add_to(root)
root.command("demo")(demo.demo)
root.command("evaluate")(evaluate.evaluate)
root.command("detect")(detect.detect)
root.add_typer(dataset.app, name="dataset")
root.add_typer(model.app, name="model")
root.add_typer(policy.app, name="policy")
root.add_typer(tenant.tenant_app, name="tenant")
root.add_typer(tenant.key_app, name="key")
root.add_typer(plugin.app, name="plugin")


def command_line(words: Sequence[str] = ()) -> typer.Typer:
    """The whole command line: ours, and what other allowed packages add. A lone command of its point's own name is a
    verb. The allow-list `plugins` is that of the state folder which `words` name."""
    from genward.plugins import allowed_commands

    found, common.skipped[:] = allowed_commands(common.allow_list(words))
    for point in found:
        if point.name in _mounted:
            continue
        _mounted.add(point.name)
        try:
            _mount(point)
        except Exception as error:  # a stranger's: nobody else's command waits for it to be mended
            who = point.dist.name if point.dist else point.value
            reason = f"the commands {point.name!r} of {who} are broken: {type(error).__name__}: {error}"
            common.broken[reason] = traceback.format_exc()
    return root


def _mount(point: EntryPoint) -> None:
    app = point.load()
    commands = app.registered_commands
    if len(commands) == 1 and commands[0].name == point.name:
        root.registered_commands.append(commands[0])
    else:
        root.add_typer(app, name=point.name)


def main() -> None:
    """Run the command line. Exit codes: 0 ok, 1 check failed, 2 usage, 3 denied, 4 not found, 5 integrity."""
    words = _json_first(sys.argv[1:])
    common.settings.json = words[:1] == ["--json"]  # a mistake may be met before the flag is
    try:
        sys.exit(command_line(words)(args=words, standalone_mode=False))
    except GenwardError as error:
        sys.exit(common.report(error))
    except _MISUSE as error:
        sys.exit(_misused(error))
    except typer.Abort:
        sys.exit(common.report(Interrupted("stopped")))
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        remedy = "is there space, and may this user write here?"
        sys.exit(
            common.report(Unavailable(error.strerror or str(error), where=str(error.filename or ""), remedy=remedy))
        )
    finally:
        common.close()


def _json_first(words: list[str]) -> list[str]:
    """`genward model list --json` means `genward --json model list`; audit's verbs have a flag of their own."""
    if "--json" not in words or "audit" in words:
        return words
    return ["--json", *(word for word in words if word != "--json")]


def _misused(error: Exception) -> int:
    """A mistake on the command line as one line; a noun without a verb has shown its help already."""
    text = str(getattr(error, "format_message", lambda: error)()).strip().rstrip(".")
    if not text:
        return UsageError.exit_code
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "genward"
    return common.report(UsageError(text, remedy=f"`{path} --help` shows more"))
