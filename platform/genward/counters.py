"""What worker processes share: limits, cursors and grants that are still open.

A worker takes from a cursor in chunks too, and spends from its chunk without asking the store.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Float, MetaData, Table, Text, delete, insert, select, text, update

from genward.errors import Conflict, Unavailable
from genward.limits import Limits
from genward.store import Store

_LARGEST = 1 << 16  # positions of a cursor in one chunk
_metadata = MetaData()
_counters = Table(
    "counters",
    _metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
_ADVANCE = text(
    "INSERT INTO counters (name, value) VALUES (:name, :amount)"
    " ON CONFLICT (name) DO UPDATE SET value = counters.value + :amount RETURNING value"
)
_grants = Table(
    "open_grants",
    _metadata,
    Column("request", Text, primary_key=True),
    Column("body", Text, nullable=False),  # the settle entry's fields, as JSON
    Column("deadline", Float, nullable=False),
)


class Counters(Limits):
    """Limits, cursors and open grants in one store. Thread-safe."""

    def __init__(self, url: str) -> None:
        super().__init__(Store(url, durable=False))  # what a power cut loses of limits, the log still knows
        with self.store.begin() as c:
            _metadata.create_all(c)
        self._chunks: dict[str, _Chunk] = {}

    def _advanced(self, name: str, amount: int) -> int:
        """Take positions of a cursor; returns the one behind them."""
        with self.store.begin() as c:
            return int(c.execute(_ADVANCE, {"name": name, "amount": amount}).scalar_one())

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
                end = self._advanced(name, got)
                # nobody took in between: what was left goes on into what is new, and nothing is skipped
                held.left = held.left + got if end - got == held.used else got
                held.used, held.taken = end, time.monotonic()
            held.left -= amount
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
    used: int = 0  # the cursor's value when the chunk was taken
    taken: float = 0.0  # when, and how much
    size: int = 0
