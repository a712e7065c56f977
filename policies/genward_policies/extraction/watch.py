"""Who is watched: a sketch for each key and release, in the store that all workers share, and how often it was
flagged.

A worker adds to its own copy and writes every few requests; what a killed worker had not written is forgotten. A flag
is in the log, by an id that only this installation can tie to a key, before it has any effect.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Float, Integer, LargeBinary, MetaData, Table, Text, delete, insert, select, update

from genward import record
from genward.contracts import Facts
from genward.errors import Unavailable
from genward_policies.extraction.sketch import Query, Sketch
from genward_policies.extraction.suspicion import suspicion

if TYPE_CHECKING:
    from genward.counters import Counters
    from genward.policy import PolicyContext

EVERY = 25  # queries between two looks at a sketch
KNOWN_SECONDS = 2.0  # for which a level that was looked up is believed
_KEPT = 512  # sketches in a worker's memory; twice as many while requests are under way
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
)


@dataclass
class _Watched:
    base: Sketch = field(default_factory=Sketch)  # as it was last written or read,
    since: Sketch = field(default_factory=Sketch)  # and what came since
    strikes: int = 0
    looked: float = float("-inf")


class Watch:
    """Sketches and flags. Thread-safe."""

    def __init__(self, context: PolicyContext, counters: Counters) -> None:
        self._context, self._store = context, counters.store
        with self._store.begin() as c:
            _metadata.create_all(c)
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Watched] = OrderedDict()

    def level(self, facts: Facts) -> int:
        """0 for a key that is not flagged, up to 3."""
        name = name_of(facts)
        with self._lock:
            held = self._get(name)
            self._trim(
                2 * _KEPT
            )  # what is written takes time, which a request should not wait for: `add` comes after it
            if time.monotonic() - held.looked > KNOWN_SECONDS:
                self._read(name, held)
            return level(held.strikes)

    def add(self, facts: Facts, query: Query) -> None:
        """Count a query; every few of them write the sketch and look at it."""
        name = name_of(facts)
        with self._lock:
            held = self._get(name)
            self._trim(_KEPT)
            held.since.add(query, held.base)
            if held.since.queries >= EVERY:
                self._write(name, held)

    def reset(self, name: str) -> bool:
        """Forget everything about a key on a release; False when nothing was known."""
        with self._lock:
            self._held.pop(name, None)
            with self._store.begin() as c:
                return bool(c.execute(delete(_watched).where(_watched.c.name == name)).rowcount)

    def listed(self) -> Sequence[dict[str, Any]]:
        """Who is watched, the most suspicious first."""
        with self._store.begin() as c:
            rows = c.execute(select(_watched).order_by(_watched.c.score.desc())).mappings().all()
        return [_row(row) for row in rows]

    def _get(self, name: str) -> _Watched:
        held = self._held.pop(name, None) or _Watched()
        self._held[name] = held
        return held

    def _trim(self, most: int) -> None:
        """Let go of the keys that were not seen for longest."""
        while len(self._held) > most:
            self._flush(*self._held.popitem(last=False))

    def _flush(self, name: str, held: _Watched) -> None:
        if held.since.queries:
            self._write(name, held)

    def _read(self, name: str, held: _Watched) -> None:
        with self._store.begin() as c:
            row = c.execute(select(_watched).where(_watched.c.name == name)).mappings().first()
        self._take(held, row)

    def _take(self, held: _Watched, row: Any) -> None:
        """What the store says; nothing where something was: it was reset, and what came before it is forgotten."""
        if row is None and held.base.queries:
            held.since = Sketch()
        held.base = Sketch() if row is None else Sketch.from_bytes(row["sketch"])
        held.strikes, held.looked = (0 if row is None else int(row["strikes"])), time.monotonic()

    def _write(self, name: str, held: _Watched) -> None:
        """Add what came since to what the store has, look at the sum, and write it. A flag is in the log first."""
        with self._store.begin() as c:
            row = c.execute(select(_watched).where(_watched.c.name == name).with_for_update()).mappings().first()
            self._take(held, row)
            both = held.base.plus(held.since)
            score = suspicion(both)
            strikes = held.strikes + 1 if score >= 1 else max(0, held.strikes - 1)
            if level(strikes) != level(held.strikes):
                self._record(name, level(strikes), score)
            values = {"sketch": both.to_bytes(), "strikes": strikes, "score": score, "changed": time.time()}
            mine = _watched.c.name == name
            c.execute(insert(_watched).values(name=name, **values) if row is None else _change(mine, values))
        held.base, held.since, held.strikes = both, Sketch(), strikes

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
