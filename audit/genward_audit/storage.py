"""Where a log lies: two tiny interfaces, and both on local disk.

`Objects` holds the public files of the log. `Head` holds the last signed checkpoint apart from them, under
compare-and-swap: whoever cannot swap it is not the writer any more.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from genward_audit.errors import Conflict, NotFound, Unavailable
from genward_audit.reader import read_file

_T = TypeVar("_T")
_LIMIT = 64 << 20


class Objects(Protocol):
    """Named files.

    `write` returns only when the bytes are durable under their name, and a crash leaves the old bytes or the new ones,
    never a mixture. An error says nothing about which of the two is there: the caller must be able to write again.
    """

    def read(self, name: str) -> bytes:
        """Raises NotFound, Unavailable."""

    def write(self, name: str, data: bytes) -> None:
        """Raises Unavailable."""

    def remove(self, name: str) -> None:
        """Remove a file, or everything under the prefix `name/`. What is not there is no error, and a crash may bring
        it back. Raises Unavailable."""


class Head(Protocol):
    """One value under compare-and-swap.

    `swap` returns only when the new value is durable, and raises Conflict when the present value is not `old`. After an
    Unavailable the value may be either; the caller reads it again before it goes on.
    """

    def read(self) -> bytes | None: ...

    def swap(self, old: bytes | None, new: bytes) -> None: ...


class LocalObjects:
    """Files under a folder: temporary file, fsync, rename, fsync of the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes:
        return read_file(self.folder / name, _LIMIT)

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        part = path.with_name(f".{path.name}.part")
        try:
            made = _make_folders(path.parent)
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
            for folder in made:
                sync_folder(folder)
        except OSError as error:
            raise Unavailable(f"cannot write: {error.strerror}", where=str(path)) from error

    def remove(self, name: str) -> None:
        path = self.folder / name
        try:
            for one in list(path.iterdir()) if path.is_dir() else []:
                one.unlink(missing_ok=True)
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot remove: {error.strerror}", where=str(path)) from error


class SqliteHead:
    """The head in a SQLite file of its own, every commit synchronous."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked(lambda c: c.execute("CREATE TABLE IF NOT EXISTS head (id INTEGER PRIMARY KEY, value BLOB)"))

    def read(self) -> bytes | None:
        row = self._asked(lambda c: c.execute("SELECT value FROM head WHERE id = 1").fetchone())
        return None if row is None else bytes(row[0])

    def swap(self, old: bytes | None, new: bytes) -> None:
        def write(connection: sqlite3.Connection) -> int:
            if old is None:
                return connection.execute("INSERT OR IGNORE INTO head VALUES (1, ?)", (new,)).rowcount
            return connection.execute("UPDATE head SET value = ? WHERE id = 1 AND value = ?", (new, old)).rowcount

        if self._asked(write) != 1:
            raise Conflict("another writer moved the head", where=str(self.path), remedy="only one may write a log")

    def _asked(self, act: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=10)
            try:
                connection.execute("PRAGMA synchronous=FULL")
                with connection:
                    return act(connection)
            finally:
                connection.close()
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(f"the head cannot be used: {error}", where=str(self.path)) from error


def _make_folders(folder: Path) -> list[Path]:
    """Make missing folders; returns the parents that must be synced for them to last."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return [path.parent for path in missing]


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def optional(read: Callable[[], bytes]) -> bytes | None:
    """What `read` gives, None when it is not there."""
    try:
        return read()
    except NotFound:
        return None
