"""How much: rows a request, a key's rows a day, a tenant's rows ever, a key's requests a minute.

Rows are reserved before anything is planned and settled by what was delivered. Limits hold across worker processes:
each takes chunks from a shared counter and spends them by itself; a chunk that dies with its worker counts as spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from genward.contracts import Facts, Lease, Outcome, Request, Verdict
from genward.counters import Counters
from genward.hookspecs import hookimpl
from genward.policy import Policy, PolicyContext

_SHARE = 64  # a chunk is at most this fraction of a limit, so that few rows are stuck in an idle worker,
_CHUNK = 10_000  # and at most so many, so that a worker that is killed again and again costs little
_DAY, _MINUTE = 86_400, 60


class Rows(BaseModel):
    """Limits on rows; left out is unlimited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_request: int | None = Field(None, ge=1)
    per_key_day: int | None = Field(None, ge=1)
    per_tenant_lifetime: int | None = Field(None, ge=1)


class Requests(BaseModel):
    """Limits on requests; left out is unlimited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_key_minute: int | None = Field(None, ge=1)


class QuotaConfig(BaseModel):
    """Limits on rows and requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: Rows = Rows()
    requests: Requests = Requests()


class Quota(Policy):
    """Reserve, then settle."""

    name = "quota"
    Config = QuotaConfig

    def __init__(self, config: Any, context: PolicyContext) -> None:
        super().__init__(config, context)
        self._counters = context.counters or Counters(context.store_url)
        self._open: dict[str, list[str]] = {}

    @hookimpl
    def admit(self, request: Request, facts: Facts) -> Verdict:
        if request.action != "generate":
            return Verdict(True)
        rows = self.config.rows
        if rows.per_request is not None and request.n > rows.per_request:
            return Verdict(False, (f"quota: at most {rows.per_request} rows a request",))
        if request.id in self._open:
            return Verdict(False, ("quota: the request is under way already",))
        return self._reserved(request, facts)

    def _reserved(self, request: Request, facts: Facts) -> Verdict:
        taken: list[tuple[str, int]] = []
        headers: dict[str, str] = {}
        for label, name, amount, limit, resets in self._limits(request, facts):
            left = self._counters.reserve(name, amount, limit, chunk=max(1, min(limit // _SHARE, _CHUNK)))
            if left is None:
                for other, spent in taken:
                    self._counters.refund(other, spent)
                return Verdict(
                    False, ("quota: a limit is reached",), headers=_headers(label, limit, 0, resets), retry_after=resets
                )
            taken.append((name, amount))
            headers |= _headers(label, limit, left, resets)
        rows = [name for name, amount in taken if amount == request.n and not name.startswith("requests/")]
        self._open[request.id] = rows
        return Verdict(True, lease=Lease(self.name, request.id, request.n, rows), headers=headers)

    def _limits(self, request: Request, facts: Facts) -> list[tuple[str, str, int, int, float | None]]:
        """(label, counter, amount, limit, seconds until it resets) of each limit that is set."""
        key, now = facts.principal.key, facts.now
        day, minute = _day(int(now) // _DAY), int(now) // _MINUTE
        rows, requests = self.config.rows, self.config.requests
        found = [
            ("requests", f"requests/{key}/minute/{minute}", 1, requests.per_key_minute, _MINUTE - now % _MINUTE),
            ("rows", f"rows/{key}/day/{day}", request.n, rows.per_key_day, _DAY - now % _DAY),
            ("lifetime", f"rows/{facts.principal.tenant}/ever", request.n, rows.per_tenant_lifetime, None),
        ]
        return [(a, b, c, limit, e) for a, b, c, limit, e in found if limit is not None]

    @hookimpl
    def settle(self, lease: Lease, outcome: Outcome) -> None:
        names = self._open.pop(lease.request, None)
        for name in names or ():
            self._counters.refund(name, lease.rows - outcome.rows)


@lru_cache(2)
def _day(number: int) -> str:
    """The UTC date of a day since the epoch, as counters name it."""
    return datetime.fromtimestamp(number * _DAY, UTC).strftime("%Y%m%d")


def _headers(label: str, limit: int, left: int, resets: float | None) -> Mapping[str, str]:
    """x-ratelimit headers; the daily rows are the plain ones that clients look for."""
    stem = "x-ratelimit" if label == "rows" else f"x-ratelimit-{label}"
    found = {f"{stem}-limit": str(limit), f"{stem}-remaining": str(left)}
    return found if resets is None else {**found, f"{stem}-reset": str(int(resets) + 1)}
