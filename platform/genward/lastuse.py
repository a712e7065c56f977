"""When each API key was last used: noted in memory, written at most once a minute and never while a request waits.

It lies in the counters' store: in the registry each note would make every worker forget what it remembers.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from sqlalchemy import Column, Float, MetaData, Table, Text, delete, insert, select

from genward.store import Store

EVERY = 60.0  # seconds between two notes of one key
_BATCH = 500
_metadata = MetaData()
_uses = Table(
    "key_uses",
    _metadata,
    Column("prefix", Text, primary_key=True),
    Column("at", Float, nullable=False),  # seconds since the epoch, UTC
)


class LastUse:
    """Notes of this process, and the store they go to. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.begin() as c:
            _metadata.create_all(c)
        self._lock = threading.Lock()
        self._fresh: dict[str, float] = {}  # not written yet
        self._written: dict[str, float] = {}

    def saw(self, key: str, now: float) -> None:
        """A key was used; nothing is written here."""
        if now - self._written.get(key, -EVERY) >= EVERY:
            self._fresh[key] = now

    def write(self) -> int:
        """Write what is new; returns how many keys. Called beside requests, and at the end."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
            names = list(fresh)
            for at in range(0, len(names), _BATCH):
                self._put({name: fresh[name] for name in names[at : at + _BATCH]})
            if len(self._written) > 100_000:
                self._written.clear()
            self._written.update(fresh)
            return len(fresh)

    def _put(self, some: Mapping[str, float]) -> None:
        with self._store.begin() as c:
            known = {row.prefix: row.at for row in c.execute(select(_uses).where(_uses.c.prefix.in_(list(some))))}
            newer = {name: at for name, at in some.items() if at > known.get(name, 0.0)}
            if newer:
                c.execute(delete(_uses).where(_uses.c.prefix.in_(list(newer))))
                c.execute(insert(_uses), [{"prefix": name, "at": at} for name, at in newer.items()])

    def all(self) -> dict[str, float]:
        """Last use by key prefix, of all processes."""
        with self._store.begin() as c:
            return {row.prefix: row.at for row in c.execute(select(_uses))}
