"""Large responses: a durable grant, pieces from threads, the last one held back until the settle is durable."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import orjson

from genward import record
from genward.contracts import Outcome, Rows
from genward.digest import RowsDigest
from genward.errors import GenwardError, Unavailable
from genward.table import PageRows

if TYPE_CHECKING:
    from genward.request import Call, Pipeline

_log = logging.getLogger("genward.stream")
PIECE = 8192  # rows computed and encoded at a time
GRANT = 1_000_000  # rows of one grant: what a crash can charge without delivering


class Stream:
    """One large response: a chain of grants, each settled before the next begins or the last byte leaves."""

    def __init__(self, pipeline: Pipeline, call: Call) -> None:
        self._pipeline, self._call = pipeline, call
        served = call.served
        if served is None or call.principal is None or call.policies is None:
            raise Unavailable("a stream needs a request that was admitted")
        self._served, self._tenant, self._policies = served, call.principal.tenant, call.policies
        self._left, self._delivered = call.ask.n, 0
        self._plan: Any = None
        self._at = 0
        self._grant_rows, self._index = 0, -1
        self._request = call.id
        self._links = 0
        self._fields = pipeline._fields(call)
        self._leases = call.admission.leases
        self._exhausted = False

    async def grant(self) -> int:
        """Make the first grant durable; returns its index. Nothing may leave before."""
        call, pages = self._call, self._pipeline._pages
        self._plan = pages.plan(
            self._served, self._tenant, call.predicate, call.admission.cells, call.ask.n, call.ask.start
        )
        self._at = self._plan.start
        index = await self._next_grant()
        call.admission = type(call.admission)(True, headers=call.admission.headers)  # the leases are the stream's now
        return index

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. However it ends, the open grant is settled: as served, or as aborted and charged whole."""
        encoder = self._pipeline._encoder(self._call)
        held = encoder.start()
        try:
            while True:
                digest, begun = RowsDigest(), self._at
                async for rows in self._rows():
                    digest.update(rows)
                    if held:
                        yield held
                    held = await asyncio.to_thread(encoder.piece, rows)
                await self._settle("served", digest, begun)
                if self._left <= 0 or self._exhausted:
                    break
                await self._next_grant()
            yield held + encoder.end()
        finally:
            await self._finish()

    async def _rows(self) -> AsyncIterator[Rows]:
        """Rows of the present grant, computed in a thread, piece by piece."""
        want = self._grant_rows
        while want > 0 and not self._exhausted:
            found = await asyncio.to_thread(self._scan, min(PIECE, want))
            self._at += found.scanned
            self._exhausted = found.exhausted
            want -= len(found.rows)
            yield self._policies.screen(self._call.request, found.rows)

    def _scan(self, n: int) -> PageRows:
        from dataclasses import replace

        deadline = time.monotonic() + self._pipeline.limits.deadline  # of each piece: a stream may take long
        plan = replace(self._plan, start=self._at)
        found: PageRows = plan.scan(n, plan.fetcher(deadline, self._pipeline._score(self._call)))
        length = plan.walk.length
        if self._served.table.slots is not None and self._at - self._plan.start + found.scanned >= length:
            return PageRows(found.rows, found.start, found.scanned, True)  # the walk has been seen once
        return found

    # the log

    async def _next_grant(self) -> int:
        self._grant_rows = min(self._left, GRANT)
        self._request = self._call.id if self._links == 0 else f"{self._call.id}/{self._links}"
        self._links += 1
        fields = self._fields | {"request": self._request}
        plan = self._fields_of(self._at, self._grant_rows)
        self._index = await self._pipeline.audit.append_async(record.entry("grant", **fields, plan=plan))
        body = orjson.dumps({**fields, "plan": plan}).decode()
        until = self._pipeline.clock() + self._lifetime()
        await asyncio.to_thread(self._pipeline.counters.open_grant, self._request, self._index, body, until)
        return self._index

    def _lifetime(self) -> float:
        """Seconds after which a grant without a settle is lost: generous, since another worker's stream may be slow."""
        return self._pipeline.limits.deadline * (2 + self._grant_rows / PIECE)

    async def _settle(self, status: str, digest: RowsDigest, begun: int) -> None:
        fields = self._fields | {"request": self._request, "status": status, "grant": self._index}
        plan = self._fields_of(begun, self._at - begun)
        out = {"rows": digest.rows, "digest": digest.final()}
        await self._pipeline.audit.append_async(record.entry("settle", **fields, plan=plan, out=out))
        await asyncio.to_thread(self._pipeline.counters.close_grant, self._request)
        self._left -= digest.rows
        self._delivered += digest.rows
        self._index = -1

    def _fields_of(self, start: int, n: int) -> Any:
        table = self._served.table
        length = self._plan.walk.length
        place = start % length if length else 0
        return record.plan_fields(place, n, self._plan.cells, self._plan.walk.segments, table.candidates)

    async def _finish(self) -> None:
        """Settle what is open, and the leases; an aborted grant is charged whole."""
        outcome = Outcome("served", self._delivered)
        if self._index >= 0:
            outcome = Outcome("aborted", self._delivered + self._grant_rows)
            try:
                fields = self._fields | {"request": self._request, "status": "aborted", "grant": self._index}
                out = {"rows": self._grant_rows}
                await asyncio.shield(self._pipeline.audit.append_async(record.entry("settle", **fields, out=out)))
                self._pipeline.counters.close_grant(self._request)
            except GenwardError:
                _log.exception("stream %s is left to the sweeper", self._request)
        self._policies.settle(self._leases, outcome)
        self._policies.observe(self._call.request, outcome)


def sweep(pipeline: Pipeline) -> int:
    """Settle grants whose deadline has passed as lost, charged whole; returns how many."""
    found = 0
    for row in pipeline.counters.overdue(pipeline.clock()):
        if not pipeline.counters.close_grant(row["request"]):
            continue
        fields = orjson.loads(row["body"])
        out = {"rows": int(fields.pop("plan")["n"])}
        entry = record.entry("settle", **fields, status="lost", grant=row["entry"], out=out)
        pipeline.audit.append(entry)
        found += 1
    return found
