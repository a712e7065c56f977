"""A log in memory, and ledgers on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from genward_policies.privacy.ledger import Ledger


class MemoryLog:
    """The log as the core knows it, as far as a ledger asks: durable appends, look-ups by request."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []

    def append(self, entry: bytes) -> int:
        from genward_audit.entries import parse

        parse(entry)  # what the real one refuses is refused here
        self.entries.append(entry)
        return len(self.entries) - 1

    def entry(self, index: int) -> bytes:
        return self.entries[index]

    def find(self, request: str) -> Sequence[int]:
        return [i for i, entry in enumerate(self.entries) if json.loads(entry).get("request") == request]


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def open_ledger(log: MemoryLog) -> Iterator[Callable[[str], Ledger]]:
    opened: list[Ledger] = []

    def open_(url: str) -> Ledger:
        opened.append(Ledger(url, lambda: log, lambda name: hashlib.sha256(name.encode()).hexdigest()))
        return opened[-1]

    yield open_
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: Callable[[str], Ledger], ledger_url: str) -> Ledger:
    return open_ledger(ledger_url)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, for the log's socket; what works on it is ended."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="gw", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
