"""Large responses: a durable grant, pieces from threads, the last one held back until the settle is durable."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from genward import record
from genward.contracts import Outcome, Rows, Status
from genward.digest import RowsDigest
from genward.errors import GenwardError, Unavailable
from genward.table import PageRows

if TYPE_CHECKING:
    from genward.request import Call, Pipeline
    from genward.respond import Encoder

_log = logging.getLogger("genward.stream")
PIECE = 8192  # rows computed and encoded at a time
CLAIM_SECONDS = 60.0  # in which a sweeper that took an overdue grant must have settled it
GRANT = 1_000_000  # rows of one grant: what a crash can charge without delivering


class Stream:
    """One large response: a chain of grants, each settled before the next begins or the last byte leaves."""

    def __init__(self, pipeline: Pipeline, call: Call) -> None:
        self._pipeline, self._call = pipeline, call
        served = call.served
        if served is None or call.principal is None or call.policies is None or call.facts is None:
            raise Unavailable("a stream needs a request that was admitted")
        self._served, self._tenant = served, call.principal.tenant
        self._left, self._delivered = call.ask.n, 0
        self._plan: Any = None
        self._at = 0
        self._grant_rows, self._index = 0, -1
        self._request = call.id
        self._links = 0
        self._fields = pipeline._fields(call)
        self._exhausted = False
        self._settling: asyncio.Task[None] | None = None
        self._until = 0.0  # the open grant's deadline in the store, by which it is ours
        self._lost = 0  # rows of grants that the sweeper settled

    async def grant(self) -> int:
        """Make the first grant durable; returns its index. Nothing may leave before."""
        call, pages = self._call, self._pipeline._pages
        self._plan = pages.plan(
            self._served,
            self._tenant,
            call.predicate,
            call.admission.cells,
            call.ask.n,
            call.ask.start,
            call.admission.reach,
        )
        self._at = self._plan.start
        return await self._next_grant()

    def headers(self) -> dict[str, str]:
        """Where the stream begins, and whether the supply is known to end before it."""
        found = {"genward-from": str(self._at % self._plan.walk.length if self._plan.walk.length else 0)}
        ends = self._plan.walk.length < self._left
        return found | ({"genward-exhausted": "true"} if ends else {})

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. However it ends, the open grant is settled: as served, or as aborted and charged whole."""
        encoder = self._pipeline._encoder(self._call)
        held = encoder.start()
        self._pipeline._under_way += 1  # a stream keeps its place in the queue until it ends
        try:
            while True:
                digest, begun = RowsDigest(), self._at
                async for rows in self._rows():
                    if held:
                        yield held
                    held = await asyncio.to_thread(self._piece, encoder, digest, rows)
                await self._settle(digest, begun)
                if self._left <= 0 or self._exhausted or not digest.rows:
                    break
                await self._next_grant()
            encoder.exhausted = self._left > 0
            yield held + encoder.end()
        finally:
            self._pipeline._under_way -= 1
            await asyncio.shield(_kept(self._finish()))  # a cancelled response cancels whatever it awaits next

    async def _rows(self) -> AsyncIterator[Rows]:
        """Rows of the present grant, computed in a thread, piece by piece."""
        want = self._grant_rows
        while want > 0 and not self._exhausted:
            found = await asyncio.to_thread(self._scan, min(PIECE, want))
            self._at += found.scanned
            self._exhausted = found.exhausted
            want -= len(found.rows)
            yield found.rows

    def _piece(self, encoder: Encoder, digest: RowsDigest, rows: Rows) -> bytes:
        meter = self._call.meter
        with meter:
            digest.update(rows)
            found = encoder.piece(rows)
            meter.bytes += len(found)
        return found

    def _scan(self, n: int) -> PageRows:
        """The next rows, as the policies leave them; exhausted when the walk has been seen once."""
        from dataclasses import replace

        deadline = time.monotonic() + self._pipeline.limits.deadline  # of each piece: a stream may take long
        plan, seen = replace(self._plan, start=self._at), self._at - self._plan.start
        fetch, screen = plan.fetcher(deadline, self._pipeline._score(self._call)), self._pipeline._screen(self._call)
        with self._call.meter:
            found: PageRows = plan.scan(n, fetch, screen, seen)
        return found._replace(exhausted=found.exhausted or seen + found.scanned >= plan.walk.length)

    # the log

    async def _next_grant(self) -> int:
        """Noted in the store first, so that a crash on either side of the log's entry leaves nothing unsettled."""
        self._grant_rows = min(self._left, GRANT)
        self._request = self._call.id if self._links == 0 else f"{self._call.id}/{self._links}"
        self._links += 1
        fields = self._fields | {"request": self._request}
        plan = self._fields_of(self._at, self._grant_rows)
        body = orjson.dumps({**fields, "plan": plan}).decode()
        counters = self._pipeline.counters
        self._until = self._pipeline.clock() + self._lifetime()
        await asyncio.to_thread(counters.open_grant, self._request, body, self._until)
        self._index = await self._pipeline.audit.append_async(record.entry("grant", **fields, plan=plan))
        return self._index

    def _lifetime(self) -> float:
        """Seconds after which a grant without a settle is lost: generous, since another worker's stream may be slow."""
        return self._pipeline.limits.deadline * (2 + self._grant_rows / PIECE)

    async def _settle(self, digest: RowsDigest, begun: int) -> None:
        """To its end even when the response is cancelled meanwhile: a grant is settled once."""
        out = {"rows": digest.rows, "digest": digest.final()}
        self._settling = _kept(self._close("served", out, self._fields_of(begun, self._at - begun)))
        await asyncio.shield(self._settling)
        self._left -= digest.rows

    async def _close(self, status: str, out: dict[str, Any], plan: Any = None) -> None:
        """Settle the open grant, unless the sweeper took it for lost: then nothing more may leave."""
        counters = self._pipeline.counters
        until = self._pipeline.clock() + self._lifetime()
        if not await asyncio.to_thread(counters.claim_grant, self._request, self._until, until):
            self._index = -1
            self._lost += self._grant_rows
            raise Unavailable("the stream took too long and is settled as lost", where=self._request)
        fields = self._fields | {"request": self._request, "status": status, "grant": self._index}
        cost = self._pipeline._cost(self._call, out["rows"])
        await self._pipeline.audit.append_async(record.entry("settle", **fields, plan=plan, out=out, cost=cost))
        self._index = -1
        self._delivered += out["rows"]
        await asyncio.to_thread(counters.close_grant, self._request)

    def _fields_of(self, start: int, n: int) -> Any:
        walk = self._plan.walk
        return record.plan_fields(start % walk.length if walk.length else 0, n, self._plan.cells, walk)

    async def _finish(self) -> None:
        """Settle what is open, and the leases; an aborted grant is charged whole."""
        if self._settling is not None:
            await asyncio.wait([self._settling])
        status: Status = "served"
        if self._index >= 0:
            status = "aborted"
            try:
                await self._close(status, {"rows": self._grant_rows})
            except GenwardError:
                _log.exception("stream %s is left to the sweeper", self._request)
        self._pipeline._pages.settle(self._plan, self._delivered, self._at - self._plan.start)
        scanned = self._at - self._plan.start
        self._pipeline._close(self._call, Outcome(status, self._delivered + self._lost, scanned))


_ENDINGS: set[asyncio.Task[None]] = set()


def _kept(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that somebody holds on to: the event loop alone would not."""
    task = asyncio.get_running_loop().create_task(work)
    _ENDINGS.add(task)
    task.add_done_callback(_ENDINGS.discard)
    return task


def sweep(pipeline: Pipeline) -> int:
    """Settle grants whose deadline has passed as lost, charged whole; returns how many."""
    found, now = 0, pipeline.clock()
    for row in pipeline.counters.overdue(now):
        if pipeline.counters.claim_grant(row["request"], row["deadline"], now + CLAIM_SECONDS):
            found += _lost(pipeline, row)
            pipeline.counters.close_grant(row["request"])
    return found


def _lost(pipeline: Pipeline, row: Mapping[str, Any]) -> bool:
    """Write the settle that is missing; the log knows whether a grant was given, or settled before a crash."""
    entries = {index: orjson.loads(pipeline.audit.entry(index)) for index in pipeline.audit.find(row["request"])}
    grants = [index for index, entry in entries.items() if entry["event"] == "grant"]
    if not grants or any(entry["event"] == "settle" for entry in entries.values()):
        return False
    fields = orjson.loads(row["body"])
    out = {"rows": int(fields.pop("plan")["n"])}
    pipeline.audit.append(record.entry("settle", **fields, status="lost", grant=grants[0], out=out))
    return True
