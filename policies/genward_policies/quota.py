"""How much: rows and requests, by key, tenant and model, a minute, a day and ever.

Rows are reserved before anything is planned and settled by what was delivered. Limits hold across worker processes:
each takes chunks from a shared store and spends them by itself; a chunk that dies with its worker counts as spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from genward.contracts import Facts, Lease, Outcome, Request, Verdict
from genward.counters import Counters
from genward.errors import GenwardError
from genward.hookspecs import hookimpl
from genward.limits import DAY, EVER, MINUTE, Window, limit_name
from genward.policy import Policy, PolicyContext

_SHARE = 64  # a chunk is at most this fraction of a limit, so that few rows are stuck in an idle worker,
_CHUNK = 10_000  # and at most so many, so that a worker that is killed again and again costs little
_PERIODS = {"minute": MINUTE, "day": DAY, "lifetime": EVER}
_STEMS = {"rows": "x-ratelimit", "requests": "x-ratelimit-requests"}


class _Table(BaseModel):
    """Limits of a key, a tenant (all its keys) and a model (everybody, all versions); left out is unlimited. Minutes
    and days are those of the UTC clock."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_key_minute: int | None = Field(None, ge=1)
    per_key_day: int | None = Field(None, ge=1)
    per_key_lifetime: int | None = Field(None, ge=1)
    per_tenant_minute: int | None = Field(None, ge=1)
    per_tenant_day: int | None = Field(None, ge=1)
    per_tenant_lifetime: int | None = Field(None, ge=1)
    per_model_minute: int | None = Field(None, ge=1)
    per_model_day: int | None = Field(None, ge=1)
    per_model_lifetime: int | None = Field(None, ge=1)


class Rows(_Table):
    """Limits on rows; `per_request` is of one request alone."""

    per_request: int | None = Field(None, ge=1)


class Requests(_Table):
    """Limits on requests."""


class QuotaConfig(BaseModel):
    """Limits on rows and requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: Rows = Rows()
    requests: Requests = Requests()


@dataclass(frozen=True, slots=True)
class _Rule:
    """One limit of the table."""

    what: str  # rows | requests
    kind: str  # key | tenant | model
    period: str
    limit: int

    @property
    def chunk(self) -> int:
        return max(1, min(self.limit // _SHARE, _CHUNK))


@dataclass(frozen=True, slots=True)
class _Taken:
    """What one limit gave to a request."""

    rule: _Rule
    name: str
    window: Window
    amount: int
    left: int


class Quota(Policy):
    """Reserve, then settle. A request is told by its id: it has one lease, and the lease is settled once."""

    name = "quota"
    Config = QuotaConfig

    def __init__(self, config: Any, context: PolicyContext) -> None:
        super().__init__(config, context)
        self._counters = context.counters or Counters(context.store_url)
        self._rules = _rules(config)
        self._open: dict[str, Sequence[_Taken]] = {}

    @hookimpl
    def admit(self, request: Request, facts: Facts) -> Verdict:
        if request.action != "generate":
            return Verdict(True)
        most = self.config.rows.per_request
        if most is not None and request.n > most:
            return Verdict(False, (f"quota: at most {most} rows a request",))
        if facts.release is None:
            return Verdict(False, ("quota: no release was named",))
        if request.id in self._open:
            return Verdict(False, ("quota: the request is under way already",))
        return self._reserved(request, facts)

    def _reserved(self, request: Request, facts: Facts) -> Verdict:
        """A lease on every limit, or none and how long to wait until all of them may allow it."""
        taken: list[_Taken] = []
        refused: list[_Rule] = []
        try:
            for rule in self._rules:
                found = self._take(rule, request, facts)
                taken.append(found) if found else refused.append(rule)
        except GenwardError:
            self._give_back(taken)
            raise
        if refused:
            self._give_back(taken)
            return Verdict(False, ("quota: a limit is reached",), retry_after=_wait(refused, request.n, facts.now))
        self._open[request.id] = [item for item in taken if item.rule.what == "rows"]
        lease = Lease(self.name, request.id, request.n)
        return Verdict(True, lease=lease, headers=_headers(taken, facts.now))

    def _take(self, rule: _Rule, request: Request, facts: Facts) -> _Taken | None:
        name = limit_name(rule.what, rule.kind, _whose(rule.kind, facts))
        window = Window.at(_PERIODS[rule.period], facts.now)
        amount = request.n if rule.what == "rows" else 1
        left = self._counters.reserve(name, amount, rule.limit, rule.chunk, window)
        return None if left is None else _Taken(rule, name, window, amount, left)

    def _give_back(self, taken: Sequence[_Taken]) -> None:
        for item in taken:
            self._counters.refund(item.name, item.amount, item.window)

    @hookimpl
    def settle(self, lease: Lease, outcome: Outcome) -> None:
        """Rows that were not delivered go back; the request itself stays counted. The second time nothing happens, and
        nothing in another process than the one that made the lease: there it counts as spent."""
        for item in self._open.pop(lease.request, ()):
            self._counters.refund(item.name, item.amount - outcome.rows, item.window)


def _rules(config: QuotaConfig) -> tuple[_Rule, ...]:
    """Requests first: whoever asks too often costs no look at his rows."""
    return tuple(
        _Rule(what, kind, period, limit)
        for what, table in (("requests", config.requests), ("rows", config.rows))
        for kind in ("key", "tenant", "model")
        for period in _PERIODS
        if (limit := getattr(table, f"per_{kind}_{period}")) is not None
    )


def _whose(kind: str, facts: Facts) -> str:
    if kind == "model":
        return facts.release.name if facts.release else ""
    return facts.principal.key if kind == "key" else facts.principal.tenant


def _wait(refused: Sequence[_Rule], rows: int, now: float) -> float | None:
    """Seconds until every limit that refused begins anew; None when one never will, or is smaller than the request."""
    waits = [Window.at(_PERIODS[rule.period], now).left(now) for rule in refused]
    hopeless = any(rule.what == "rows" and rule.limit < rows for rule in refused)
    known = [wait for wait in waits if wait is not None]
    return None if hopeless or len(known) < len(waits) else max(known)


def _headers(taken: Sequence[_Taken], now: float) -> Mapping[str, str]:
    """x-ratelimit headers: of the limits on rows the one that is nearest to its end, and likewise of requests."""
    found: dict[str, str] = {}
    for what, stem in _STEMS.items():
        limits = [item for item in taken if item.rule.what == what]
        if limits:
            found |= _header(stem, min(limits, key=lambda item: item.left / item.rule.limit), now)
    return found


def _header(stem: str, item: _Taken, now: float) -> Mapping[str, str]:
    rule, resets = item.rule, item.window.left(now)
    found = {
        f"{stem}-limit": str(rule.limit),
        f"{stem}-remaining": str(item.left),
        f"{stem}-scope": f"{rule.kind}-{rule.period}",
    }
    return found if resets is None else {**found, f"{stem}-reset": str(math.ceil(resets))}
