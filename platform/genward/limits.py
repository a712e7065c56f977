"""Limits that worker processes share: how much of a window is used, in chunks, and what the log says was given.

A window is a minute, a day (UTC) or ever. A worker takes from a window in chunks and spends its chunk without asking
the store; what a chunk held when its worker was killed counts as spent, so that no limit is passed, whoever dies.
Beside what is `used` stands what the log has `settled`: of the two the larger counts. So a store that lost its newest
writes in a power cut, was restored from an older copy or is new knows again what was given, once it has read the log.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Column, Index, MetaData, Table, Text, delete, func, select, text, update
from sqlalchemy.engine import Connection

from genward.contracts import AuditSink
from genward.errors import NotFound
from genward.store import Store

EVER, MINUTE, DAY = 0, 60, 86_400  # seconds of a window
KEPT = {MINUTE: 3600, DAY: 8 * DAY}  # seconds after its end for which a window is remembered
_SETTLED = "settled"  # the mark: how many entries of the log are counted
_metadata = MetaData()
_limits = Table(
    "limits",
    _metadata,
    Column("name", Text, primary_key=True),
    Column("seconds", BigInteger, primary_key=True, autoincrement=False),
    Column("starts", BigInteger, primary_key=True, autoincrement=False),
    Column("used", BigInteger, nullable=False),  # spent, and in the hands of workers
    Column("settled", BigInteger, nullable=False),  # given, by the entries of the log that were read so far
    Index("limits_by_time", "seconds", "starts"),
)
_marks = Table(
    "limit_marks",
    _metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
_NEW = text(
    "INSERT INTO limits (name, seconds, starts, used, settled) VALUES (:name, :seconds, :starts, 0, 0)"
    " ON CONFLICT DO NOTHING"
)
_MORE = text(
    "INSERT INTO limits (name, seconds, starts, used, settled) VALUES (:name, :seconds, :starts, 0, :settled)"
    " ON CONFLICT (name, seconds, starts) DO UPDATE SET settled = limits.settled + excluded.settled"
)
_WHOLE = text(
    "UPDATE limits SET used = CASE WHEN settled > used THEN settled ELSE used END + :wanted"
    " WHERE name = :name AND seconds = :seconds AND starts = :starts"
    " AND used + :wanted <= :limit AND settled + :wanted <= :limit RETURNING used"
)
_FIRST = text("INSERT INTO limit_marks (name, value) VALUES (:name, 0) ON CONFLICT DO NOTHING")


class Window(NamedTuple):
    """Of `seconds` from `starts`, both in seconds; EVER has neither beginning nor end."""

    seconds: int = EVER
    starts: int = 0

    @classmethod
    def at(cls, seconds: int, now: float) -> Window:
        """The window of that length in which a moment lies."""
        return cls(seconds, int(now // seconds) * seconds) if seconds else cls()

    def left(self, now: float) -> float | None:
        """Seconds until it ends; None when it does not."""
        return self.starts + self.seconds - now if self.seconds else None


_ALWAYS = Window()


@dataclass
class _Chunk:
    limit: int  # under which it was taken
    left: int = 0
    used: int = 0  # of the window, when it was taken
    touched: float = 0.0


class Limits:
    """The shared store, and this process's chunks of it. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self.store = store
        with store.begin() as c:
            _metadata.create_all(c)
            c.execute(_FIRST, {"name": _SETTLED})
        self._lock = threading.Lock()
        self._held: dict[tuple[str, Window], _Chunk] = {}

    def reserve(self, name: str, amount: int, limit: int, chunk: int = 0, window: Window = _ALWAYS) -> int | None:
        """Take `amount` of `limit`; returns what is left at most, or None when there is not enough.

        Args:
            name: what is limited, for example rows/tenant/acme.
            limit: of this window. A chunk that was taken under another limit, or of a window that is fuller than this
                limit, goes back first.
            chunk: take this much at once when the chunk at hand is too small.
        """
        with self._lock:
            held = self._held.setdefault((name, window), _Chunk(limit))
            if held.limit != limit or held.used > limit:
                held = self._returned(name, window, limit)
            if held.left < amount:
                got, held.used = self._take(name, window, amount - held.left, max(chunk, amount), limit)
                if not got:
                    return None
                held.left += got
            held.left -= amount
            held.touched = time.monotonic()
            return max(0, limit - held.used) + held.left

    def used(self, name: str, window: Window = _ALWAYS) -> int:
        """How much of a window is used, workers' chunks included."""
        with self.store.begin() as c:
            return _used(c, _is(name, window)) or 0

    def refund(self, name: str, amount: int, window: Window = _ALWAYS) -> None:
        """Give back what was reserved and not spent: to this process's chunk, or to the store where it has none."""
        if amount <= 0:
            return
        with self._lock:
            held = self._held.get((name, window))
            if held is None or held.used > held.limit:
                self._add(name, window, -amount)
            else:
                held.left += amount

    def release(self, older: float = 0.0) -> None:
        """Return chunks untouched for `older` seconds to the store; all of them at a regular end."""
        with self._lock:
            now = time.monotonic()
            for name, window in [key for key, chunk in self._held.items() if now - chunk.touched >= older]:
                self._add(name, window, -self._held.pop((name, window)).left)

    def prune(self, now: float) -> int:
        """Forget windows that ended long ago, and that they were; returns how many. One that was forgotten is not
        granted again, should the clock go back to it."""
        with self.store.begin() as c:
            return sum(_pruned(c, seconds, int(now) - seconds - kept) for seconds, kept in KEPT.items())

    def catch_up(self, audit: AuditSink, most: int | None = None) -> int:
        """Count what the log's entries settled that nobody has read yet; returns how many were read.

        Args:
            most: read so many at most; None reads to the end.
        """
        found, step = 0, 1024
        while most is None or found < most:
            begin = self._mark()
            end, given = _read(audit, begin, step if most is None else min(step, most - found))
            if end == begin:
                break
            self._settle(begin, end, given)
            found += end - begin
        return found

    def _returned(self, name: str, window: Window, limit: int) -> _Chunk:
        """An empty chunk, after what the last one held went back to the store."""
        self._add(name, window, -self._held.pop((name, window)).left)
        held = self._held[name, window] = _Chunk(limit)
        return held

    def _take(self, name: str, window: Window, least: int, wanted: int, limit: int) -> tuple[int, int]:
        """(taken, used afterwards): as much of `wanted` as the limit leaves, nothing if that is below `least`."""
        here, place = _is(name, window), {"name": name, **window._asdict()}
        with self.store.begin() as c:
            whole = c.execute(_WHOLE, {**place, "wanted": wanted, "limit": limit}).scalar()
            if whole is not None:  # in one statement, as nearly always
                return wanted, int(whole)
            used = _used(c, here)
            if used is None:
                if _forgotten(c, window):
                    return 0, limit
                c.execute(_NEW, place)
                used = _used(c, here) or 0
            take = min(wanted, limit - used)
            if take < least:
                return 0, used
            c.execute(update(_limits).where(here).values(used=used + take))
            return take, used + take

    def _add(self, name: str, window: Window, amount: int) -> None:
        if amount:
            with self.store.begin() as c:
                c.execute(update(_limits).where(_is(name, window)).values(used=_limits.c.used + amount))

    def _mark(self) -> int:
        with self.store.begin() as c:
            return int(c.execute(select(_marks.c.value).where(_marks.c.name == _SETTLED)).scalar_one())

    def _settle(self, begin: int, end: int, given: Mapping[tuple[str, Window], int]) -> None:
        """Add up what a piece of the log says, unless another process did meanwhile."""
        rows = [{"name": name, **window._asdict(), "settled": n} for (name, window), n in sorted(given.items())]
        mine = (_marks.c.name == _SETTLED) & (_marks.c.value == begin)
        with self.store.begin() as c:
            if c.execute(update(_marks).where(mine).values(value=end)).rowcount and rows:
                c.execute(_MORE, rows)


def _is(name: str, window: Window) -> Any:
    c = _limits.c
    return (c.name == name) & (c.seconds == window.seconds) & (c.starts == window.starts)


def _used(c: Connection, here: Any) -> int | None:
    """What is used of a window, whoever knows more; None when it has no row."""
    row = c.execute(select(_limits.c.used, _limits.c.settled).where(here).with_for_update()).first()
    return None if row is None else max(row[0], row[1])


def _forgotten(c: Connection, window: Window) -> bool:
    """Whether a window is as old as one that was pruned."""
    mark = c.execute(select(_marks.c.value).where(_marks.c.name == f"pruned/{window.seconds}")).scalar()
    return bool(window.seconds) and mark is not None and window.starts <= mark


def _pruned(c: Connection, seconds: int, before: int) -> int:
    old = (_limits.c.seconds == seconds) & (_limits.c.starts < before)
    newest = c.execute(select(func.max(_limits.c.starts)).where(old)).scalar()
    if newest is None:
        return 0
    name = f"pruned/{seconds}"
    c.execute(_FIRST, {"name": name})
    c.execute(update(_marks).where((_marks.c.name == name) & (_marks.c.value < newest)).values(value=newest))
    return int(c.execute(delete(_limits).where(old)).rowcount)


def _read(audit: AuditSink, begin: int, most: int) -> tuple[int, Counter[tuple[str, Window]]]:
    """(end, given): what the entries from `begin` to before `end` gave; `end` is `begin` at the log's end.

    A stream's grant is charged whole; its settle gives back what was not delivered. One without a settle stays charged.
    """
    given: Counter[tuple[str, Window]] = Counter()
    found = audit.entries(begin, most)
    for _, data in found:
        entry = json.loads(data)
        if not isinstance(entry, dict) or "tenant" not in entry:
            continue
        if entry.get("event") == "grant":
            given.update(_given(entry, entry["plan"]["n"], int("/" not in str(entry["request"]))))
        elif entry.get("event") == "settle":
            given.update(_settled(audit, entry))
    return (found[-1][0] + 1 if found else begin), given


def _settled(audit: AuditSink, entry: Mapping[str, Any]) -> dict[tuple[str, Window], int]:
    """What a settle adds: all of a page; of a stream's, which was charged when it was granted, what was too much."""
    rows = int(entry.get("out", {}).get("rows", 0))
    if "grant" not in entry:
        return _given(entry, rows, 1)
    try:
        grant = json.loads(audit.entry(entry["grant"]))
    except NotFound:  # retention took it, maybe before it was counted
        return _given(entry, rows, 0)
    return _given(grant, rows - grant["plan"]["n"], 0)


def _given(entry: Mapping[str, Any], rows: int, requests: int) -> dict[tuple[str, Window], int]:
    """What rows and requests of an entry add to each limit that may stand on its key, tenant or model."""
    day = Window.at(DAY, datetime.fromisoformat(str(entry["t"])).timestamp())
    whose = {"key": entry.get("actor"), "tenant": entry.get("tenant"), "model": model_name(entry.get("model"))}
    return {
        (limit_name(what, kind, str(who)), window): amount
        for what, amount in (("rows", rows), ("requests", requests))
        for kind, who in whose.items()
        for window in (day, _ALWAYS)
        if amount and who
    }


def limit_name(what: str, kind: str, who: str) -> str:
    """The name of what is limited: rows or requests, of a key, a tenant or a model."""
    return f"{what}/{kind}/{who}"


def model_name(reference: Any) -> str:
    """The name in name:version@digest: a limit on a model holds over its versions."""
    return str(reference or "").partition("@")[0].rpartition(":")[0]
