"""The request path. Every route, the command line and the Python API end here; there is no second way to a sample.

    record( authenticate -> admit -> plan -> run blocks -> choose -> filter -> screen -> mark ) -> response + receipt

No grant, no first byte; no settle, no last byte: a body held in memory leaves after one durable `settle`; a stream
leaves after a durable `grant`, and its last piece after a durable `settle`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from genward import record, statement
from genward.checks import check_choice, check_count, check_scope, check_start, granted
from genward.contracts import (
    AuditSink,
    Condition,
    Facts,
    KeyProvider,
    Outcome,
    Principal,
    ReleaseInfo,
    Request,
    Rows,
)
from genward.digest import RowsDigest, digest_of
from genward.errors import Denied, GenwardError, LimitReached, NotFound, Unavailable
from genward.meter import Costs, Meter
from genward.pages import Page, Pages
from genward.policyset import Admission, PolicySet
from genward.respond import Encoder, encoder
from genward.table import PageRows, Predicate

if TYPE_CHECKING:
    from collections.abc import Callable

    from genward.counters import Counters
    from genward.registry import Registry
    from genward.served import Served, Shelf

_log = logging.getLogger("genward.request")
LIMIT = "a limit is reached"


@dataclass(frozen=True)
class Limits:
    """Of one worker. `held`: a body of at most so many rows is held in memory, a larger one is streamed."""

    max_rows: int = 10_000_000
    held: int = 10_000
    queue: int = 256
    deadline: float = 60.0


@dataclass(frozen=True)
class Ask:
    """What a caller sent, before anybody believed it."""

    key: str
    model: str
    n: int
    where: Sequence[str] = ()
    start: int | None = None
    media: str = "application/json"


@dataclass(frozen=True)
class Response:
    """What leaves: headers, and a body whole or in pieces."""

    request: str
    media: str
    headers: Mapping[str, str]
    body: bytes = b""
    pieces: AsyncIterator[bytes] | None = None


_UNDECIDED = Admission(False)


@dataclass(slots=True)
class Call:
    """One request on its way: what is known so far, and how long each stage took."""

    id: str
    ask: Ask
    began: float = field(default_factory=time.perf_counter)
    seen: int | None = None  # the registry's change counter when the request came
    principal: Principal | None = None
    served: Served | None = None
    predicate: Predicate | None = None
    admission: Admission = _UNDECIDED
    policies: PolicySet | None = None
    facts: Facts | None = None
    deadline: float = 0.0
    times: dict[str, float] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    marks: Mapping[str, str] | None = None  # what travels beside the rows
    settled: bool = False
    closed: bool = False  # its leases were handed back
    _request: Request | None = None
    _lap: float = field(default_factory=time.perf_counter)

    def narrow(self, predicate: Predicate) -> None:
        """Take what the policies made of the predicate for what was asked."""
        self.predicate, self._request = predicate, None

    def lap(self, stage: str) -> None:
        """A stage has ended: what has passed since the last one did is its time."""
        now = time.perf_counter()
        self.times[stage], self._lap = now - self._lap, now

    @property
    def request(self) -> Request:
        if self._request is not None:
            return self._request
        where = self.predicate.conditions if self.predicate else ()
        name = "" if self.served is None else self.served.info.name
        found = Request(self.id, "generate", name, self.ask.n, where, self.ask.start)
        if self.predicate is not None:  # everything is known by now
            self._request = found
        return found


class Pipeline:
    """The one request pipeline of a worker."""

    def __init__(
        self,
        registry: Registry,
        shelf: Shelf,
        audit: AuditSink,
        keys: KeyProvider,
        counters: Counters,
        policies: Callable[[str, str], PolicySet],
        limits: Limits,
        clock: Callable[[], float] = time.time,
        authenticate: Callable[[str, float, int | None], Principal] | None = None,
    ) -> None:
        self.registry, self.shelf, self.audit, self.keys = registry, shelf, audit, keys
        self.authenticate = authenticate or registry.authenticate
        self.counters, self.limits, self.clock = counters, limits, clock
        self._make_policies = policies
        self._policies: tuple[str, PolicySet] | None = None
        self._pages = Pages(counters)
        self._seen: tuple[asyncio.AbstractEventLoop, int, int] | None = None
        self._under_way = 0
        self._counts: Counter[str] = Counter()
        self._costs = Costs()

    async def generate(self, ask: Ask) -> Response:
        """The whole path of a request for rows."""
        call = Call(record.request_id(), ask, deadline=time.monotonic() + self.limits.deadline)
        async with self._recorded(call):
            with self._place_in_queue():
                self._authenticate(call)
                await self._find(call)
                self._admit(call)
                if ask.n > self.limits.held:
                    return await self._streamed(call)
                page = await self._run(call)
                body = self._encoded(call, page)
                index = await self._settle(call, page)
                return Response(call.id, ask.media, self._headers(call, index, page), body)

    @asynccontextmanager
    async def reading(self, key: str, action: str, model: str = "") -> AsyncIterator[Principal]:
        """The path of every other authenticated request: who, and may he; what is refused inside is recorded too."""
        call = Call(record.request_id(), Ask(key, model, 0))
        async with self._recorded(call):
            self._authenticate(call)
            self._decide(call, Request(call.id, action, model), self._named(call, model))
            yield self._principal(call)

    async def read(self, key: str, action: str, model: str = "") -> Principal:
        """Who asks, if he may."""
        async with self.reading(key, action, model) as principal:
            return principal

    async def refuse(self, key: str, model: str, error: GenwardError) -> None:
        """The path of a request that cannot be read: who sent it comes first, and the refusal is recorded."""
        call = Call(record.request_id(), Ask(key, model, 0))
        async with self._recorded(call):
            self._authenticate(call)
            raise error

    # stages

    def _authenticate(self, call: Call) -> None:
        call.seen = self._look()
        call.principal = self.authenticate(call.ask.key, self.clock(), call.seen)
        call.lap("authenticate")

    async def _find(self, call: Call) -> None:
        """The release and the predicate; a release the caller may not see is not there for him."""
        info = self.registry.resolve(call.ask.model, at=call.seen)
        if not granted(self._principal(call), info):
            raise NotFound(f"no release {call.ask.model!r}", remedy="`genward model list` shows them")
        at_hand = self.shelf.at_hand(info)
        served = await asyncio.to_thread(self.shelf.get, info) if at_hand is None else at_hand
        served.info, call.served = info, served  # grants may be newer than the open release
        check_count(call.ask.n, self.limits.max_rows)
        check_start(call.ask.start)
        call.predicate = Predicate.parse(call.ask.where, served.codec.schema)
        call.lap("find")

    def _admit(self, call: Call) -> None:
        """Ask the policies; what they add to the predicate is honoured exactly as the caller's own clauses."""
        self._decide(call, call.request, _served(call).info)
        check_choice(_served(call).table.candidates, _policies(call).scores)
        if call.admission.where and call.predicate is not None:
            more = Predicate.of(call.admission.where, _served(call).codec.schema)
            call.narrow(Predicate((*call.predicate.clauses, *more.clauses)))
        call.lap("admit")

    def _named(self, call: Call, model: str) -> ReleaseInfo | None:
        """The release that a reader names, where his tenant may use it."""
        with suppress(NotFound):
            info = self.registry.resolve(model, at=call.seen) if model else None
            return info if info is not None and granted(self._principal(call), info) else None
        return None

    def _decide(self, call: Call, request: Request, release: ReleaseInfo | None) -> None:
        call.policies = self._active(call.seen)
        principal, address = self._principal(call), getattr(call.ask.key, "address", "")
        check_scope(principal, request)
        call.facts = Facts(principal, self.clock(), call.policies.digest, release, address)
        call.admission = call.policies.admit(request, call.facts)
        if call.admission.allow:
            if call.admission.cap is not None and request.n > call.admission.cap:
                raise Denied(f"at most {call.admission.cap} rows are allowed here")
            return
        reasons = _told(call.admission.reasons)
        if call.admission.failed:
            raise Unavailable("a policy could not answer", where=reasons, retry_after=call.admission.retry_after or 1)
        if call.admission.retry_after is not None:
            raise LimitReached(reasons, retry_after=call.admission.retry_after)
        raise Denied(reasons)

    async def _run(self, call: Call) -> Page:
        """Plan, run blocks, choose, filter, screen: on the spot when all blocks are at hand, else in a thread."""
        served, tenant = _served(call), self._principal(call).tenant
        asked = call.admission.cells, call.ask.n, call.ask.start, call.admission.reach
        plan = self._pages.plan(served, tenant, call.predicate, *asked)
        at_hand = plan.at_hand(call.ask.n)
        page = self._page(call, plan) if at_hand else await asyncio.to_thread(self._page, call, plan)
        call.lap("run")
        return page

    def _page(self, call: Call, plan: Any) -> Page:
        fetch = plan.fetcher(call.deadline, self._score(call))
        with call.meter:
            found: PageRows = plan.scan(call.ask.n, fetch, self._screen(call))
        return Page(plan, found.rows, found.start, found.scanned, found.exhausted)

    def _score(self, call: Call) -> Callable[[Rows], Any] | None:
        policies = _policies(call)
        return (lambda rows: policies.score(call.request, _facts(call), rows)) if policies.scores else None

    def _screen(self, call: Call) -> Callable[[Rows], Rows] | None:
        policies = _policies(call)
        return (lambda rows: policies.screen(call.request, _facts(call), rows)) if policies.screens else None

    def _encoded(self, call: Call, page: Page) -> bytes:
        with call.meter:
            chosen = self._encoder(call)
            chosen.exhausted = page.exhausted
            body = chosen.whole(page.rows)
        call.meter.bytes += len(body)
        call.lap("encode")
        return body

    def _encoder(self, call: Call) -> Encoder:
        return encoder(call.ask.media, _served(call).codec, self._marks(call))

    def _marks(self, call: Call) -> Mapping[str, str]:
        """What travels beside the rows, made once."""
        if call.marks is None:
            info = _served(call).info
            said = {"request": call.id, "model": f"{info.name}:{info.version}", "digest": info.digest}
            call.marks = _policies(call).mark(call.request, _facts(call), said)
        return call.marks

    async def _settle(self, call: Call, page: Page) -> int:
        """One durable entry with the plan inline, before the first byte of a body held in memory."""
        with call.meter:
            out = {"rows": len(page.rows), "digest": digest_of(page.rows)}
        cost = self._cost(call, len(page.rows))
        fields = self._fields(call) | {"plan": page.fields(), "status": "served", "out": out, "cost": cost}
        index = await self.audit.append_async(record.entry("settle", **fields))
        call.lap("record")
        call.settled = True
        self._pages.settle(page.plan, len(page.rows), page.scanned)
        self._close(call, Outcome("served", len(page.rows), page.scanned))
        return index

    # streams

    async def _streamed(self, call: Call) -> Response:
        """A grant, then pieces of which the last is held back until the settle is durable."""
        from genward.stream import Stream

        stream = Stream(self, call)
        self._marks(call)  # what can fail, before a grant is open
        index = await stream.grant()
        headers = self._headers(call, index, None) | stream.headers()
        return Response(call.id, call.ask.media, headers, pieces=stream.pieces())

    # what is shared

    @asynccontextmanager
    async def _recorded(self, call: Call) -> AsyncIterator[None]:
        """Outermost: whatever refuses or fails is an entry too; when that cannot be written, the answer is 503."""
        try:
            yield
        except GenwardError as error:
            self._close(call, Outcome("denied" if isinstance(error, Denied) else "error", 0))
            if not call.settled:
                await self._refusal(call, error)
            raise
        except asyncio.CancelledError:
            self._close(call, Outcome("aborted", 0))
            if not call.settled:  # the caller is gone, the entry is written all the same
                await asyncio.shield(self._write_refusal(call, "aborted", ["the caller left"]))
            raise
        except Exception as error:
            _log.exception("request %s failed", call.id)
            self._close(call, Outcome("error", 0))
            await self._refusal(call, error)
            raise GenwardError(
                "something went wrong here", where=call.id, remedy="tell the operator this id"
            ) from error

    async def _refusal(self, call: Call, error: Exception) -> None:
        known = isinstance(error, GenwardError)
        status = "denied" if known and 400 <= error.status < 500 else "error"  # type: ignore[attr-defined]
        await self._write_refusal(call, status, list(call.admission.reasons) or [type(error).__name__])

    async def _write_refusal(self, call: Call, status: str, reasons: list[str]) -> None:
        fields = {**self._fields(call), "status": status, "reasons": reasons}
        await self.audit.append_async(record.entry("refuse", **fields))

    def _close(self, call: Call, outcome: Outcome) -> None:
        """Settle leases and let policies observe; failing here changes nothing for the caller."""
        self._counts[f'requests_total{{status="{outcome.status}"}}'] += 1
        self._counts["rows_total"] += outcome.rows
        leases, call.closed = () if call.closed else call.admission.leases, True
        if call.policies is None or call.facts is None:
            return
        try:
            call.policies.settle(leases, outcome)
        except GenwardError:
            _log.exception("request %s was not settled", call.id)
        call.policies.observe(call.request, call.facts, outcome)

    def _cost(self, call: Call, rows: int) -> dict[str, int]:
        """What a request, or a grant of a stream, has cost since the last settle; counted by tenant and model."""
        served, cost = _served(call), call.meter.take(_policies(call).tariff)
        self._costs.add(self._principal(call).tenant, f"{served.info.name}:{served.info.version}", rows, cost)
        return cost

    def _fields(self, call: Call) -> dict[str, Any]:
        """What every entry of a request says."""
        principal, served, where, added = call.principal, call.served, call.ask.where, call.admission.where
        told = {"where": record.asked(where) if where else None, "added": record.added(added) if added else None}
        commit = None
        if where or added:
            salt = record.salt(self.keys, call.id)
            commit = {name: record.commitment(salt, value) for name, value in told.items() if value is not None}
        return {
            "request": call.id,
            "tenant": principal.tenant if principal else None,
            "actor": principal.key if principal else None,
            "model": f"{served.info.name}:{served.info.version}@{served.info.digest}" if served else None,
            "policy": call.policies.digest if call.policies else None,
            "reasons": list(call.admission.reasons) or None if call.admission.allow else None,
            "commit": commit,
        }

    def _headers(self, call: Call, index: int, page: Page | None) -> dict[str, str]:
        served, policies = _served(call), _policies(call)
        found = {
            "genward-request": call.id,
            "genward-model": f"{served.info.name}:{served.info.version}",
            "genward-model-digest": served.info.digest,
            "genward-policy-digest": policies.digest,
            "genward-audit-index": str(index),
            "genward-provider": served.engine.provider,
            **call.admission.headers,
        }
        if call.admission.where:
            found["genward-added"] = record.added(call.admission.where).decode()
        if (stated := statement.header(self._marks(call))) is not None:
            found[statement.HEADER] = stated
        if page is not None:
            found |= page.headers()
        timing = ", ".join(f"{name};dur={1000 * spent:.2f}" for name, spent in call.times.items())
        total = 1000 * (time.perf_counter() - call.began)
        return {**found, "server-timing": f"{timing}, total;dur={total:.2f}"}

    @contextmanager
    def _place_in_queue(self) -> Iterator[None]:
        if self._under_way >= self.limits.queue:
            raise LimitReached("the server is busy", remedy="ask again", retry_after=1.0)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _look(self) -> int:
        """The registry's change counter. One look serves all requests of one turn of the event loop: they had all come
        when the turn began, so each still sees every change made before it came."""
        loop, writes = asyncio.get_running_loop(), self.registry.writes
        found = self._seen
        if found is None or found[:2] != (loop, writes):
            found = self._seen = (loop, writes, self.registry.change_counter())
            loop.call_soon(self._look_again)
        return found[2]

    def _look_again(self) -> None:
        self._seen = None

    def _active(self, seen: int | None) -> PolicySet:
        digest, text = self.registry.active_policy(seen)
        if self._policies is None or self._policies[0] != digest:
            self.counters.catch_up(self.audit)  # a limit that is new counts what was given before it
            self._policies = (digest, self._make_policies(digest, text))
        return self._policies[1]

    def _principal(self, call: Call) -> Principal:
        if call.principal is None:
            raise Unavailable("the request was not authenticated")
        return call.principal

    def metrics(self) -> str:
        """Counters of this worker, Prometheus text."""
        lines = [f"genward_{name} {value}" for name, value in sorted(self._counts.items())] + self._costs.lines()
        return "\n".join([*lines, f"genward_requests_under_way {self._under_way}", ""])

    def replay(self, entry: Mapping[str, Any], where: Sequence[str], added: Sequence[Condition] = ()) -> str:
        """The digest of a response's rows, computed again from its log entry, what was asked, what the policies added
        to it, and the policy of then."""
        name, _, digest = str(entry["model"]).partition("@")
        info = self.registry.resolve(name, retired=True)
        if info.digest != digest:
            raise NotFound(f"{name} is another bundle now", where=digest)
        served = self.shelf.get(info)
        asked, more = Predicate.parse(where, served.codec.schema), Predicate.of(added, served.codec.schema)
        predicate = Predicate((*asked.clauses, *more.clauses))
        plan = self._pages.again(served, str(entry["tenant"]), predicate, entry["plan"])
        policies = self._make_policies(str(entry["policy"]), str(self.registry.policy(str(entry["policy"]))["text"]))
        request = Request(str(entry["request"]), "generate", info.name, int(entry["out"]["rows"]), predicate.conditions)
        principal = Principal(str(entry["tenant"]), str(entry["actor"]))
        when = datetime.fromisoformat(str(entry["t"])).timestamp()
        facts = Facts(principal, when, policies.digest, info)
        score = (lambda rows: policies.score(request, facts, rows)) if policies.scores else None
        found = RowsDigest()
        for rows in plan.rows(int(entry["plan"]["n"]), score):
            found.update(policies.screen(request, facts, rows))
        return found.final()


def _told(reasons: Sequence[str]) -> str:
    """Reasons as the caller hears them: which limit he met is in the log alone."""
    return LIMIT if any(reason.endswith(LIMIT) for reason in reasons) else "; ".join(reasons)


def _served(call: Call) -> Served:
    if call.served is None:
        raise Unavailable("no release was found for the request")
    return call.served


def _facts(call: Call) -> Facts:
    if call.facts is None:
        raise Unavailable("the request was not admitted")
    return call.facts


def _policies(call: Call) -> PolicySet:
    if call.policies is None:
        raise Unavailable("no policy was asked")
    return call.policies
