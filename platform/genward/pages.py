"""Plans and pages: where a request stands in its tenant's walk, and which rows it got."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Rows
from genward.errors import GenwardError
from genward.record import plan_fields
from genward.table import PageRows, Predicate, Walk, joined, scan

if TYPE_CHECKING:
    from genward.counters import Counters
    from genward.served import Served

_log = logging.getLogger("genward.pages")
_CHUNK = 256  # positions of a cursor that a worker takes at once to begin with; a busy one takes more each time
_SHARE = 16  # at most this fraction of a walk: what two workers take at once must not meet
_MOST = 64  # without a pool: slots examined for each row asked for, before a page says it is exhausted
_SLACK = 65_536
_PIECE = 8192  # slots of one piece of a replay
_AT_ONCE = 10_000  # slots that an event loop may look up by itself: a millisecond

Score = Callable[[Rows], Any]
Fetch = Callable[[NDArray[np.int64]], Rows]
Screen = Callable[[Rows], Rows]


@dataclass(frozen=True)
class Plan:
    """A place in a walk. `cells` None: the table declares none."""

    served: Served
    tenant: str
    predicate: Predicate | None
    walk: Walk
    cells: tuple[int, ...] | None
    start: int
    cursor: str | None
    reserved: int = 0  # positions of the cursor that this page took,
    end: int = 0  # and the one behind them, of a cursor that does not wrap around

    def fetcher(self, deadline: float | None, score: Score | None = None) -> Fetch:
        """One chosen row for each slot."""
        engine, key = self.served.engine, self.served.own_key(self.tenant)
        return lambda slots: engine.rows(slots, score, deadline, key)

    def at_hand(self, n: int) -> bool:
        """Whether a page of n rows is likely to compute nothing."""
        if self.predicate is not None and self.predicate.clauses:
            n *= 4
        if n > _AT_ONCE or not self.walk.length:
            return not self.walk.length
        if self.served.engine.complete:
            return True
        slots = self.walk.slots(self.start, min(n, self.walk.length))
        return self.served.engine.cached(slots, self.served.own_key(self.tenant))

    def scan(self, n: int, fetch: Fetch, screen: Screen | None = None, seen: int = 0) -> PageRows:
        """Examine slots until n rows pass and the screen leaves them, or the supply ends.

        Args:
            n: rows wanted.
            fetch: one chosen row for each slot, in order.
            screen: what policies leave of rows; None leaves all.
            seen: how many places of the walk were examined before this one and are not looked at again.
        """
        supply = self.walk.length - seen
        if self.served.table.slots is None:
            supply = min(supply, _MOST * n + _SLACK)
        found = self._scanned(n, 0, fetch, supply)
        if screen is None:
            return found
        parts, scanned = [screen(found.rows)], found.scanned
        while (missing := n - sum(map(len, parts))) > 0 and scanned < supply:
            more = self._scanned(missing, scanned, fetch, supply - scanned)
            parts.append(screen(more.rows))
            scanned += more.scanned
        return PageRows(joined(parts), found.start, scanned, missing > 0)

    def _scanned(self, n: int, skip: int, fetch: Fetch, supply: int) -> PageRows:
        """As `scan`, of what comes `skip` places behind the start, before any screen."""
        passes, pooled = self._passes(), self.served.table.slots is not None
        if passes is None and pooled and n <= supply:  # every slot counts: one look-up
            start = (self.start + skip) % self.walk.length
            return PageRows(fetch(self.walk.slots(start, n)), start, n, False)
        return scan(self.walk, self.start + skip, n, fetch, passes, supply)

    def rows(self, scanned: int, score: Score | None = None) -> Iterator[Rows]:
        """The rows that pass among the slots of an earlier page, piece by piece."""
        fetch, passes = self.fetcher(None, score), self._passes()
        for at in range(0, scanned, _PIECE):
            rows = fetch(self.walk.slots(self.start + at, min(_PIECE, scanned - at)))
            keep = np.ones(len(rows), dtype=bool) if passes is None else passes(rows)
            places = np.flatnonzero(keep & self.walk.inside(rows.slots))
            yield Rows(rows.numbers[places], rows.codes[places], rows.slots[places])

    def _passes(self) -> Callable[[Rows], NDArray[np.bool_]] | None:
        predicate, codec = self.predicate, self.served.codec
        if predicate is None or not predicate.clauses:
            return None
        return lambda rows: predicate.mask(rows.numbers, rows.codes, codec)


@dataclass(frozen=True)
class Page:
    """Rows and where they came from."""

    plan: Plan
    rows: Rows
    start: int
    scanned: int
    exhausted: bool

    def fields(self) -> Mapping[str, Any]:
        """The plan as the log keeps it."""
        return plan_fields(self.start, self.scanned, self.plan.cells, self.plan.walk)

    def headers(self) -> dict[str, str]:
        """Rows, yield (rows that passed among slots examined), where to ask for this page again."""
        share = len(self.rows) / self.scanned if self.scanned else 0.0
        found = {"genward-rows": str(len(self.rows)), "genward-yield": f"{share:.4f}", "genward-from": str(self.start)}
        return {**found, "genward-exhausted": "true"} if self.exhausted else found


class Pages:
    """Makes plans and moves cursors."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._yields: dict[str, float] = {}

    def plan(
        self,
        served: Served,
        tenant: str,
        predicate: Predicate | None,
        allowed: frozenset[int] | None,
        n: int,
        start: int | None,
        reach: int | None = None,
    ) -> Plan:
        """A place for n rows: the one asked for, or the next of the tenant's cursor for this release and predicate."""
        cells = _cells(served, predicate, allowed)
        walk = served.walk(tenant, cells, reach=reach)
        if start is not None:
            return Plan(served, tenant, predicate, walk, cells, start, None)
        cursor = _cursor(served, tenant, predicate, cells)
        wanted = max(1, round(n / self._yields.get(cursor, 1.0)))
        at = self._advance(cursor, wanted, walk)
        place = at % walk.length if walk.length else 0
        return Plan(served, tenant, predicate, walk, cells, place, cursor, wanted, at + wanted)

    def _advance(self, cursor: str, positions: int, walk: Walk) -> int:
        share = walk.length // _SHARE
        return self._counters.advance(cursor, positions, min(_CHUNK, share), most=share)

    def settle(self, plan: Plan, rows: int, scanned: int) -> None:
        """Move the cursor to where a filtered or screened page stopped, and learn its yield for the next one.

        The rows are given by now: where the cursor cannot be moved, the next page repeats some, and nobody is refused.
        """
        cursor = plan.cursor
        filtered = plan.predicate is not None and plan.predicate.clauses
        if cursor is None or scanned == 0 or (scanned <= plan.reserved and not filtered):
            return
        try:
            if scanned > plan.reserved:
                self._advance(cursor, scanned - plan.reserved, plan.walk)
            else:
                self._counters.retreat(cursor, plan.end, plan.reserved - scanned)
        except GenwardError:
            _log.exception("a cursor was not moved")
        if len(self._yields) > 10_000:
            self._yields.clear()
        self._yields[cursor] = max(rows, 1) / scanned

    def again(self, served: Served, tenant: str, predicate: Predicate, plan: Mapping[str, Any]) -> Plan:
        """The plan of an earlier page, from its log entry."""
        cells = tuple(int(cell) for cell in plan["cells"]) if "cells" in plan else None
        walk = served.walk(tenant, cells, int(plan["segments"]), plan.get("reach"))
        return Plan(served, tenant, predicate, walk, cells, int(plan["start"]), None)


def _cells(served: Served, predicate: Predicate | None, allowed: frozenset[int] | None) -> tuple[int, ...] | None:
    """Cells that may hold rows of the predicate and are allowed; None where the table declares none."""
    if not served.table.cells:
        return None
    every = predicate.cells(served.table) if predicate else tuple(range(len(served.table.cells)))
    return tuple(cell for cell in every if allowed is None or cell in allowed)


def _cursor(served: Served, tenant: str, predicate: Predicate | None, cells: tuple[int, ...] | None) -> str:
    what = predicate.canonical() if predicate is not None and predicate.clauses else b"[]"
    return _label(f"{served.bundle.digest}/{tenant}/", what, cells)


@lru_cache(4096)
def _label(whose: str, what: bytes, cells: tuple[int, ...] | None) -> str:
    return f"cursor/{hashlib.sha256(whose.encode() + what + repr(cells).encode()).hexdigest()[:32]}"
