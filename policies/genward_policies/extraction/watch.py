"""Who is watched: a sketch for each key and release, in the store that all workers share, and how often it was
flagged.

A worker keeps the last few queries of each key and adds them to its sketch together, after a response; what a killed
worker had not written is forgotten. A flag is in the log, by an id that only this installation can tie to a key, before
it has any effect.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Float, Index, Integer, LargeBinary, MetaData, Table, Text, delete, insert, select, update

from genward import record
from genward.contracts import Facts
from genward.errors import Unavailable
from genward_policies.extraction.sketch import Query, Sketch
from genward_policies.extraction.suspicion import suspicion

if TYPE_CHECKING:
    from genward.counters import Counters
    from genward.policy import PolicyContext

EVERY = 25  # queries between two looks at a sketch
KNOWN_SECONDS = 2.0  # for which what was read of all flags is believed
_KEPT = 1 << 16  # queries of all keys in a worker's memory: 33 MB at most
LEVELS = ("none", "record", "slow", "deny")
_STRIKES = (1, 2, 4)  # looks in a row that were suspicious, for each level
_metadata = MetaData()
_watched = Table(
    "extraction_watch",
    _metadata,
    Column("name", Text, primary_key=True),  # release digest/tenant/key
    Column("sketch", LargeBinary, nullable=False),
    Column("strikes", Integer, nullable=False),
    Column("score", Float, nullable=False),
    Column("changed", Float, nullable=False),
    Index("extraction_watch_strikes", "strikes"),  # a row is 18 kB: flags are found without looking at all of them
)


class Watch:
    """Sketches and flags. Thread-safe."""

    def __init__(self, context: PolicyContext, counters: Counters) -> None:
        self._context, self._store = context, counters.store
        with self._store.begin() as c:
            _metadata.create_all(c)
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, list[Query]] = OrderedDict()  # not written yet, by key
        self._count = 0  # of them all
        self._flagged: dict[str, int] = {}
        self._looked = float("-inf")

    def level(self, facts: Facts) -> int:
        """0 for a key that is not flagged, up to 3."""
        with self._lock:
            if time.monotonic() - self._looked > KNOWN_SECONDS:
                self._flagged, self._looked = self._read(), time.monotonic()
            return level(self._flagged.get(name_of(facts), 0))

    def add(self, facts: Facts, query: Query) -> None:
        """Count a query; every few of a key are added to its sketch, which is then looked at."""
        name = name_of(facts)
        with self._lock:
            waiting = self._waiting.pop(name, [])
            self._waiting[name] = [*waiting, query]
            self._count += 1
            if len(waiting) + 1 >= EVERY:
                self._write(name)
            while self._count > _KEPT:  # those that were not seen for longest
                self._write(next(iter(self._waiting)))

    def reset(self, name: str) -> bool:
        """Forget everything about a key on a release; False when nothing was known."""
        with self._lock:
            self._count -= len(self._waiting.pop(name, ()))
            self._flagged.pop(name, None)
            with self._store.begin() as c:
                return bool(c.execute(delete(_watched).where(_watched.c.name == name)).rowcount)

    def listed(self) -> Sequence[dict[str, Any]]:
        """Who is watched, the most suspicious first."""
        with self._store.begin() as c:
            rows = c.execute(select(_watched).order_by(_watched.c.score.desc())).mappings().all()
        return [_row(row) for row in rows]

    def _read(self) -> dict[str, int]:
        """Strikes of the keys that have some."""
        with self._store.begin() as c:
            rows = c.execute(select(_watched.c.name, _watched.c.strikes).where(_watched.c.strikes > 0))
            return {row.name: int(row.strikes) for row in rows}

    def _write(self, name: str) -> None:
        """Add what waits to what the store has, look at it, and write it. A flag is in the log first."""
        queries, mine = self._waiting[name], _watched.c.name == name
        with self._store.begin() as c:
            row = c.execute(select(_watched).where(mine).with_for_update()).mappings().first()
            sketch, before = (Sketch(), 0) if row is None else (Sketch.from_bytes(row["sketch"]), int(row["strikes"]))
            for query in queries:
                sketch.add(query)
            score = suspicion(sketch)
            strikes = before + 1 if score >= 1 else max(0, before - 1)
            if level(strikes) != level(before):
                self._record(name, level(strikes), score)
            values = {"sketch": sketch.to_bytes(), "strikes": strikes, "score": score, "changed": time.time()}
            c.execute(insert(_watched).values(name=name, **values) if row is None else _change(mine, values))
        self._flagged[name] = strikes
        self._count -= len(self._waiting.pop(name))

    def _record(self, name: str, found: int, score: float) -> None:
        if self._context.audit is None:
            raise Unavailable("a flag cannot be recorded: there is no log")
        release, _, _ = name.partition("/")
        detail = {"key_id": keyed_id(self._context, name), "release": release, "level": LEVELS[found]}
        self._context.audit().append(record.act("extraction.flag", "extraction", **detail, score=f"{score:.2f}"))


def _change(mine: Any, values: dict[str, Any]) -> Any:
    return update(_watched).where(mine).values(**values)


def _row(row: Any) -> dict[str, Any]:
    release, tenant, key = row["name"].split("/", 2)
    sketch = Sketch.from_bytes(row["sketch"])
    told = {"queries": sketch.queries, "new": sketch.new, "score": round(row["score"], 3)}
    return {"key": key, "tenant": tenant, "release": release, **told, "level": LEVELS[level(row["strikes"])]}


def level(strikes: int) -> int:
    """How strong a response so many suspicious looks in a row deserve."""
    return sum(strikes >= least for least in _STRIKES)


def name_of(facts: Facts) -> str:
    """What a key's sketch on a release is called."""
    if facts.release is None:
        raise Unavailable("no release is known for the request")
    return f"{facts.release.digest}/{facts.principal.tenant}/{facts.principal.key}"


def keyed_id(context: PolicyContext, name: str) -> str:
    """An id of a key on a release that says nothing to who has not this installation's secrets."""
    return context.keys.derive(f"extraction/watch/{name}", 12).hex()
