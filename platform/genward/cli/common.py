"""What every command shares: where the state is, how to print, how errors become one line and an exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genward.errors import Denied, GenwardError, UsageError

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.plugins import PluginInfo

STATE = "GENWARD_STATE"
DEFAULT_STATE = ".genward"


@dataclass
class Settings:
    """Set once by the root command's flags."""

    state: Path = Path(DEFAULT_STATE)
    json: bool = False


settings = Settings()
broken: dict[str, str] = {}  # commands of other packages that could not be mounted: why, with its traceback
skipped: list[PluginInfo] = []  # commands of packages that are not in the allow-list
_opened: list[Platform] = []

As = Annotated[str, typer.Option("--as", envvar="GENWARD_AS", help="API key of the administrator who acts.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def use_state(state: Path | None) -> None:
    """A flag wins over the environment, the environment over the default."""
    settings.state = state or Path(os.environ.get(STATE, DEFAULT_STATE))
    os.environ[STATE] = str(settings.state)


def allow_list(words: Sequence[str]) -> Sequence[str]:
    """Whose commands may be loaded, by the state folder that a command line names; only ours where none can be read."""
    from genward import config

    given = [after for word, after in pairwise(words) if word == "--state"]
    given += [word.removeprefix("--state=") for word in words if word.startswith("--state=")]
    file = Path((given or [os.environ.get(STATE, DEFAULT_STATE)])[0]) / config.FILE
    try:
        return config.load(file.read_text(encoding="utf-8") if file.is_file() else "").plugins
    except (GenwardError, OSError, UnicodeDecodeError):  # the command itself says what is wrong
        return config.Config().plugins


def open_platform() -> Platform:
    """The platform on the chosen state folder; NotFound says how to make one."""
    from genward.api import Platform

    _opened.append(Platform.open(settings.state))
    return _opened[-1]


def acting(platform: Platform, key: str, *, four_eyes: bool = False) -> str:
    """Who acts: the prefix of an administrator's key, empty for the operator of this machine.

    `four_eyes`: an act of which another's depends; without a key it is refused, unless one operator does everything.
    """
    if key:
        principal = platform.registry.authenticate(key)
        if "administrator" not in principal.roles:
            raise Denied("this is no administrator's key", remedy="`genward key create TENANT --role administrator`")
        return principal.key
    if four_eyes and not platform.state.config.unsafe_single_operator:
        raise UsageError("two administrators are needed, each with a key", remedy="pass yours with --as, or GENWARD_AS")
    return ""


def close() -> None:
    """Hand back what a command took: chunks of limits above all, which else count as spent."""
    while _opened:
        with suppress(GenwardError):
            _opened.pop().close()


def say(text: str) -> None:
    """A line for people; silent when JSON was asked for."""
    if not settings.json:
        print(text)


def show(data: Mapping[str, Any] | Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print one record or a table of them: JSON with --json, aligned text otherwise."""
    if settings.json:
        print(json.dumps(data, indent=2, default=str))
    elif isinstance(data, Mapping):
        _show_record(data)
    else:
        _show_table(data, title)


def _show_record(data: Mapping[str, Any]) -> None:
    width = max((len(key) for key in data), default=0)
    for key, value in data.items():
        print(f"{key:<{width}}  {_cell(value)}")


def _show_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    if not rows:
        print(f"no {title or 'rows'}")
        return
    table = Table(title=None, box=None, pad_edge=False)
    for key in rows[0]:
        table.add_column(key)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(str(item) for item in value)
    return str(value)


def report(error: GenwardError) -> int:
    """Print an error the way the user asked for (JSON on standard output, or a line on the other); its exit code."""
    if settings.json:
        print(json.dumps({"error": error.title, "what": error.what, "where": error.where, "remedy": error.remedy}))
    else:
        print(f"genward: {error}", file=sys.stderr)
    return error.exit_code


def read_text(path: Path) -> str:
    """A file's text; a missing or unreadable one is the user's mistake, said in a line."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read it: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text", where=str(path)) from None


def parse_pairs(pairs: Iterable[str], what: str) -> dict[str, Any]:
    """`key=value` options; values are read as YAML, so numbers and lists come out as such."""
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"{what} {pair!r} is not key=value", remedy=f"write --{what} key=value")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"{what} {pair!r} has a value that cannot be read", remedy="quote it") from None
    return found
