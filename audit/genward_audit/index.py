"""A searchable index of schema v1 entries: one SQLite file, made from the log and made again from it at any time.

The index proves nothing: whoever needs proof asks the log for the entry and its receipt.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from genward_audit.entries import EVENTS, STATUSES, parse, parse_time
from genward_audit.errors import AuditError, FormatError, Unavailable, UsageError
from genward_audit.merkle import leaf_hash
from genward_audit.progress import Progress, Silent
from genward_audit.reader import LogFolder

FORMAT = 1
_COLUMNS = ("tenant", "model", "event", "status", "request", "act", "actor")
_BATCH = 4096
_EARLIEST = "2000-01-01T00:00:00.000000Z"  # completes a time that was only begun


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; "" and None ask for nothing. `since` and `until` are times as entries have them, or a
    beginning of one (2026-11); `since` is included, `until` is not."""

    since: str = ""
    until: str = ""
    tenant: str = ""
    model: str = ""
    event: str = ""
    status: str = ""
    request: str = ""
    act: str = ""
    actor: str = ""
    limit: int | None = None
    newest_first: bool = False

    def __post_init__(self) -> None:
        """Refuse what no entry can have: an answer of nothing would look like proof. Raises UsageError."""
        for name, known in (("event", EVENTS), ("status", STATUSES)):
            if getattr(self, name) not in ("", *known):
                raise UsageError(f"{getattr(self, name)!r} is no {name}", remedy=f"one of {', '.join(known)}")
        for name in ("since", "until"):
            _check_time(name, getattr(self, name))

    def where(self) -> tuple[str, list[Any]]:
        """The SQL clause and its values."""
        pairs = [(f"{name} = ?", getattr(self, name)) for name in _COLUMNS if getattr(self, name)]
        if self.since:
            pairs.append(("t >= ?", self.since))
        if self.until:
            pairs.append(("t < ?", self.until))
        clause = " AND ".join(text for text, _ in pairs)
        return (f"WHERE {clause}" if clause else ""), [value for _, value in pairs]


def _check_time(name: str, text: str) -> None:
    try:
        parse_time(text + _EARLIEST[len(text) :])
    except FormatError:
        raise UsageError(f"{name} {text!r} is no time", remedy="2026, 2026-11, 2026-11-22T10, ... in UTC") from None


class Index:
    """The index file. `update` brings it to the log's checkpoint; a log that is another one, or was rewritten,
    makes it start anew."""

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None)
            self._db.execute("PRAGMA synchronous=NORMAL")
            if self._db.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
                self._clear()
        except sqlite3.Error as error:
            remedy = "delete the index file; it is made again from the log"
            raise Unavailable(f"the index cannot be opened: {error}", where=self._path, remedy=remedy) from error

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _clear(self) -> None:
        columns = ", ".join(f"{name} TEXT" for name in _COLUMNS)
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("DROP TABLE IF EXISTS entry")
        self._db.execute("DROP TABLE IF EXISTS head")
        self._db.execute(f"CREATE TABLE entry (position INTEGER PRIMARY KEY, t TEXT, {columns})")
        self._db.execute("CREATE TABLE head (origin TEXT, size INTEGER, leaf BLOB)")
        for name in ("t", *_COLUMNS[:5]):
            self._db.execute(f"CREATE INDEX by_{name} ON entry ({name})")
        self._db.execute(f"PRAGMA user_version = {FORMAT}")
        self._db.execute("COMMIT")

    @property
    def size(self) -> int:
        """Entries of the log that the index has seen."""
        row = self._db.execute("SELECT size FROM head").fetchone()
        return row[0] if row else 0

    def update(self, folder: LogFolder, progress: Progress | None = None, start: int = 0) -> int:
        """Take what the checkpoint covers and the index has not seen; gives how many entries.

        Args:
            start: where a pruned log begins.
        """
        head, progress = folder.head(), progress or Silent()
        if not self._continues(folder, head.origin, head.size):
            self._clear()
        begin = max(self.size, start)
        progress.start("index", head.size - begin)
        done = begin
        rows: list[tuple[Any, ...]] = []
        leaf = b""
        for index, entry in folder.entries(begin, head.size):
            rows += _row(index, entry)
            done, leaf = index + 1, leaf_hash(entry)
            if done % _BATCH == 0 or done == head.size:
                self._store(rows, head.origin, done, leaf)
                rows = []
                progress.update(done - begin)
        progress.finish(f"{done - begin} entries")
        return done - begin

    def _continues(self, folder: LogFolder, origin: str, size: int) -> bool:
        """Was the index made from a beginning of this very log? Its last entry's hash tells."""
        row = self._db.execute("SELECT origin, size, leaf FROM head").fetchone()
        if row is None:
            return True
        try:
            known = row[0] == origin and 0 < row[1] <= size
            return known and bool(leaf_hash(folder.entry(row[1] - 1, size)) == row[2])
        except AuditError:
            return False

    def _store(self, rows: list[tuple[Any, ...]], origin: str, size: int, leaf: bytes) -> None:
        marks = ", ".join("?" * (2 + len(_COLUMNS)))
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(f"INSERT OR REPLACE INTO entry VALUES ({marks})", rows)  # noqa: S608 - marks only
            self._db.execute("DELETE FROM head")
            self._db.execute("INSERT INTO head VALUES (?, ?, ?)", (origin, size, leaf))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise Unavailable(f"the index cannot be written: {error}", where=self._path) from error

    def search(self, query: Query) -> Iterator[int]:
        """Indices of matching entries, oldest first unless the query says otherwise."""
        clause, values = query.where()
        order = "DESC" if query.newest_first else "ASC"
        limit = -1 if query.limit is None else query.limit
        sql = f"SELECT position FROM entry {clause} ORDER BY position {order} LIMIT ?"  # noqa: S608 - fixed names only
        try:
            for (position,) in self._db.execute(sql, [*values, limit]):
                yield position
        except sqlite3.Error as error:
            raise Unavailable(f"the index cannot be read: {error}", where=self._path) from error


def _row(index: int, entry: bytes) -> list[tuple[Any, ...]]:
    """The entry's row; none where it does not follow schema v1."""
    try:
        value = parse(entry)
    except AuditError:
        return []
    return [(index, value.get("t"), *(value.get(name) for name in _COLUMNS))]
