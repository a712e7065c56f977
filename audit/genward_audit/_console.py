"""How the command line shows itself: one-line errors, bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from typer.core import TyperGroup

from genward_audit.errors import AuditError

_EVERY = 5.0  # seconds between plain lines


class AuditGroup(TyperGroup):
    """Commands whose errors are one line with a remedy and an exit code, wherever the group is mounted."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except AuditError as error:
            print(f"genward audit: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            raise typer.Exit(0) from None
        except OSError as error:
            print(f"genward audit: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
            raise typer.Exit(1) from None


class Lines:
    """Progress in plain lines on standard error: a log file, a pipe, a build."""

    def __init__(self) -> None:
        self._task, self._total, self._said = "", 0.0, 0.0

    def start(self, task: str, total: float | None = None) -> None:
        """Begin a task."""
        self._task, self._total, self._said = task, total or 0.0, time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        """Say how far it is, every five seconds."""
        if time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            print(f"{self._task}: {done:.0f} of {self._total:.0f} {note}".rstrip(), file=sys.stderr)

    def finish(self, note: str = "") -> None:
        """End the task."""
        print(f"{self._task}: done {note}".rstrip(), file=sys.stderr)


class Bar:
    """Progress as a bar on a terminal's standard error."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=Console(stderr=True), transient=True)
        self._task: Any = None

    def start(self, task: str, total: float | None = None) -> None:
        """Begin a task."""
        self._bars.start()
        self._task = self._bars.add_task(task, total=total)

    def update(self, done: float, note: str = "") -> None:
        """Say how far it is."""
        self._bars.update(self._task, completed=done)

    def finish(self, note: str = "") -> None:
        """End the task."""
        self._bars.stop()


def progress() -> Lines | Bar:
    """A bar on a terminal, plain lines elsewhere."""
    return Bar() if sys.stderr.isatty() else Lines()
