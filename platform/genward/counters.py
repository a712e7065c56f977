"""Counters that worker processes share: quotas, cursors and grants that are still open.

A worker takes from a counter in chunks and spends from its chunk without asking the store. What a chunk held when its
worker was killed counts as spent: limits are never passed, whoever dies.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Float, MetaData, Table, Text, delete, insert, select, update

from genward.errors import Conflict, Unavailable
from genward.store import Store

_LARGEST = 1 << 16  # positions of a cursor in one chunk
_metadata = MetaData()
_counters = Table(
    "counters",
    _metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
_grants = Table(
    "open_grants",
    _metadata,
    Column("request", Text, primary_key=True),
    Column("body", Text, nullable=False),  # the settle entry's fields, as JSON
    Column("deadline", Float, nullable=False),
)


class Counters:
    """The shared store, and this process's chunks of it. Thread-safe."""

    def __init__(self, url: str) -> None:
        self.store = Store(url, durable=False)  # a power cut may lose the newest chunks: the log alone is durable
        with self.store.begin() as c:
            _metadata.create_all(c)
        self._lock = threading.Lock()
        self._chunks: dict[str, _Chunk] = {}

    # limits

    def reserve(self, name: str, amount: int, limit: int, chunk: int = 0) -> int | None:
        """Take `amount` of `limit`; returns what is left at most, or None when there is not enough.

        Args:
            name: the counter; a window's name is part of it.
            chunk: take this much at once when the chunk at hand is too small.
        """
        with self._lock:
            held = self._chunks.setdefault(name, _Chunk())
            if held.left < amount:
                got, used = self._take(name, amount - held.left, max(chunk, amount), limit)
                if not got:
                    return None
                held.left, held.used = held.left + got, used
            held.left -= amount
            held.touched = time.monotonic()
            return max(0, limit - held.used) + held.left

    def refund(self, name: str, amount: int) -> None:
        """Give back what was reserved and not spent, to this process's chunk."""
        if amount > 0:
            with self._lock:
                self._chunks.setdefault(name, _Chunk()).left += amount

    def release(self, older: float = 0.0) -> None:
        """Return chunks untouched for `older` seconds to the store; all of them at a regular end."""
        with self._lock:
            now = time.monotonic()
            done = [name for name, chunk in self._chunks.items() if now - chunk.touched >= older]
            for name in done:
                left = self._chunks.pop(name).left
                if left:
                    self._add(name, -left)

    def _take(self, name: str, least: int, wanted: int, limit: int) -> tuple[int, int]:
        """(taken, used afterwards): as much of `wanted` as the limit leaves, nothing if that is below `least`."""
        with self.store.begin() as c:
            row = c.execute(select(_counters.c.value).where(_counters.c.name == name).with_for_update()).first()
            used = row[0] if row else 0
            take = min(wanted, limit - used)
            if take < least:
                return 0, used
            if row is None:
                c.execute(insert(_counters).values(name=name, value=take))
            else:
                c.execute(update(_counters).where(_counters.c.name == name).values(value=used + take))
            return take, used + take

    def _add(self, name: str, amount: int) -> None:
        with self.store.begin() as c:
            c.execute(update(_counters).where(_counters.c.name == name).values(value=_counters.c.value + amount))

    # cursors

    def advance(self, name: str, amount: int, chunk: int = 0, most: int = 0) -> int:
        """Reserve `amount` positions of a cursor; returns the first. Chunks make small steps cheap: the first has
        `chunk` positions, and whoever comes back within a second takes twice as many, up to `most`."""
        with self._lock:
            held = self._chunks.setdefault(name, _Chunk())
            if held.left < amount:
                again = time.monotonic() - held.taken < 1
                held.size = max(chunk, min(2 * held.size, most, _LARGEST) if again else 0)
                got = max(held.size, amount)
                _, end = self._take(name, amount, got, 1 << 62)
                # nobody took in between: what was left goes on into what is new, and nothing is skipped
                held.left = held.left + got if end - got == held.used else got
                held.used, held.taken = end, time.monotonic()
            held.left -= amount
            held.touched = time.monotonic() + 1e9  # a cursor's chunk is not given back
            return held.used - held.left - amount

    def retreat(self, name: str, end: int, amount: int) -> None:
        """Give the last `amount` positions before `end` back to this process's chunk, unless somebody went on there."""
        with self._lock:
            held = self._chunks.get(name)
            if held is not None and held.used - held.left == end:
                held.left += amount

    # open grants

    def open_grant(self, request: str, body: str, deadline: float) -> None:
        """Remember a stream's grant until it is settled."""
        with self.store.begin() as c:
            c.execute(insert(_grants).values(request=request, body=body, deadline=deadline))

    def claim_grant(self, request: str, deadline: float, until: float) -> bool:
        """Put off an open grant's deadline, and own it; False when somebody else moved it or settled the grant."""
        mine = (_grants.c.request == request) & (_grants.c.deadline == deadline)
        with self.store.begin() as c:
            return bool(c.execute(update(_grants).where(mine).values(deadline=until)).rowcount)

    def close_grant(self, request: str) -> bool:
        """Forget a grant; False when somebody else settled it first."""
        with self.store.begin() as c:
            return bool(c.execute(delete(_grants).where(_grants.c.request == request)).rowcount)

    def overdue(self, now: float) -> list[dict[str, Any]]:
        """Grants whose deadline has passed."""
        with self.store.begin() as c:
            return [dict(row) for row in c.execute(select(_grants).where(_grants.c.deadline < now)).mappings()]

    def close(self) -> None:
        """Return what was not spent and close the store."""
        with suppress(Conflict, Unavailable):  # what is left counts as spent
            self.release()
            self._rewind()
        self.store.close()

    def _rewind(self) -> None:
        """Give back the positions of cursors that were not used, where nobody went on behind them."""
        with self._lock, self.store.begin() as c:
            for name, chunk in self._chunks.items():
                ours = (_counters.c.name == name) & (_counters.c.value == chunk.used)
                c.execute(update(_counters).where(ours).values(value=chunk.used - chunk.left))
            self._chunks.clear()


@dataclass
class _Chunk:
    left: int = 0
    used: int = 0  # the counter's value when the chunk was taken
    touched: float = 0.0
    taken: float = 0.0  # when, and how much, of a cursor
    size: int = 0
