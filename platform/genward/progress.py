"""How long work shows itself: rich bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from genward.contracts import Progress
from genward.contracts import Silent as Silent


class Lines:
    """Plain lines, at most one every `seconds`, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, seconds: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._seconds = seconds
        self._task, self._total, self._last, self._begun = "", None, 0.0, 0.0  # type: tuple[str, float | None, float, float]

    def start(self, task: str, total: float | None = None) -> None:
        self._task, self._total = task, total
        self._begun = self._last = time.monotonic()
        self._say("started")

    def update(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= self._seconds:
            self._last = now
            share = f"{100 * done / self._total:.0f} %" if self._total else f"{done:g}"
            self._say(f"{share} {note}".rstrip())

    def finish(self, note: str = "") -> None:
        self._say(f"done in {time.monotonic() - self._begun:.1f} s {note}".rstrip())

    def _say(self, text: str) -> None:
        print(f"{self._task}: {text}", file=self._stream, flush=True)


class Bar:
    """One rich bar after another."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(32),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._task = self._bar.add_task("", visible=False, note="")

    def start(self, task: str, total: float | None = None) -> None:
        self._bar.start()
        self._task = self._bar.add_task(task, total=total, note="")

    def update(self, done: float, note: str = "") -> None:
        self._bar.update(self._task, completed=done, note=note)

    def finish(self, note: str = "") -> None:
        total = self._bar.tasks[-1].total or 1.0
        self._bar.update(self._task, total=total, completed=total, note=note)
        self._bar.stop()
        self._bar.update(self._task, visible=False)


def for_terminal() -> Progress:
    """A bar when standard error is a terminal, plain lines otherwise."""
    return Bar() if sys.stderr.isatty() else Lines()
