"""How long work shows itself; anything with these three methods will do."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Rich bars on a terminal, plain lines elsewhere."""

    def start(self, task: str, total: float | None = None) -> None: ...

    def update(self, done: float, note: str = "") -> None: ...

    def finish(self, note: str = "") -> None: ...


class Silent:
    """Shows nothing."""

    def start(self, task: str, total: float | None = None) -> None:
        """Begin a task."""

    def update(self, done: float, note: str = "") -> None:
        """Say how far it is."""

    def finish(self, note: str = "") -> None:
        """End the task."""
