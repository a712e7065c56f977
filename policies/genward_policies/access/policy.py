"""The access policy: Cedar decides, a grant's slice narrows, its rows a day are counted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

from genward.contracts import Condition, Facts, Finding, Lease, Outcome, ReleaseInfo, Request, Verdict
from genward.counters import Counters
from genward.data.codec import TableCodec
from genward.data.schema import Schema
from genward.errors import PolicyError
from genward.hookspecs import hookimpl
from genward.limits import DAY, Window
from genward.policy import Policy, PolicyContext
from genward_policies.access import cedar, contexts, dryrun, slices, terms
from genward_policies.access.config import AccessConfig, Grant
from genward_policies.access.rules import Decision, Rules

_log = logging.getLogger("genward.access")
_LONGEST = 500  # characters of a reason: an entry of the log has 4 kB
_NAMED = 5  # ids in a reason
_SHARE = 64  # a chunk of a counter is at most this fraction of its limit


class Access(Policy):
    """Deny by default. Each verdict names the policies that decided, by their ids."""

    name = "access"
    Config = AccessConfig
    example: ClassVar[Mapping[str, Any]] = {"roles": {"generate": ("consumer",)}}

    def __init__(self, config: Any, context: PolicyContext) -> None:
        super().__init__(config, context)
        self._rules = Rules(cedar.text_of(config))
        self._schema = lru_cache(64)(self._read_schema)
        self._slice = lru_cache(4096)(self._clauses)
        self._covering = lru_cache(16_384)(self._grants)
        self._recorder = contexts.Recorder(context.state_dir) if config.record else None
        self._open: dict[str, tuple[Window, list[str]]] = {}

    # requests

    @hookimpl
    def admit(self, request: Request, facts: Facts) -> Verdict:
        question = terms.question(request, facts)
        decision = self._rules.decide(question)
        if self._recorder is not None:
            self._recorder.add(question, decision, facts.policy)
        if decision.errors:
            _log.error("policy_error in request %s: %s", request.id, "; ".join(decision.errors))
            return Verdict(False, (f"access: policy_error: {'; '.join(decision.errors)}"[:_LONGEST],))
        if not decision.allow:
            return Verdict(False, (_refusal(decision, request.action),))
        return self._granted(request, facts, (f"access: allowed by {_named(decision)}",))

    def _granted(self, request: Request, facts: Facts, because: tuple[str, ...]) -> Verdict:
        """What the grants that speak of this caller and model add; all of them hold."""
        release = facts.release
        if request.action != "generate" or release is None:
            return Verdict(True, because)
        who = facts.principal
        grants = self._covering(who.tenant, who.key, release.name)
        where: list[Condition] = []
        for grant in (grant for grant in grants if grant.where):
            try:
                found = self._slice(grant.id, release.digest)
            except PolicyError as error:
                _log.error("policy_error in request %s: %s", request.id, error)
                return Verdict(False, (f"access: policy_error: {error}",))
            if not slices.can_meet((*where, *request.where), found, self._schema(release.digest)):
                return Verdict(False, (f"access: outside the slice of {grant.id}",))
            where += found
        return self._reserved(request, facts.now, grants, Verdict(True, because, where=tuple(where)))

    def _grants(self, tenant: str, key: str, model: str) -> tuple[Grant, ...]:
        return tuple(grant for grant in self.config.grants if grant.covers(tenant, key, model))

    def _clauses(self, name: str, digest: str) -> tuple[Condition, ...]:
        (grant,) = (grant for grant in self.config.grants if grant.id == name)
        return slices.clauses(grant, self._schema(digest))

    def _read_schema(self, digest: str) -> Schema:
        """A release's schema, from its verified bundle."""
        if self.context.sealed is None:
            raise PolicyError("no sealed bundle can be read, and a slice needs its release's schema", where="access")
        return TableCodec.from_json(self.context.sealed(digest, "codec.json")).schema

    # rows a day

    def _reserved(self, request: Request, now: float, grants: Iterable[Grant], verdict: Verdict) -> Verdict:
        """The verdict with a lease on each grant's rows of today; a deny, with nothing taken, when one is spent."""
        if request.id in self._open:
            return Verdict(False, ("access: the request is under way already",))
        counted = [(grant.id, grant.rows_per_day) for grant in grants if grant.rows_per_day is not None]
        if not counted:
            return verdict
        today = Window.at(DAY, now)
        if not self._take(counted, request.n, today):
            hopeless = any(limit < request.n for _, limit in counted)
            return Verdict(False, ("access: a limit is reached",), retry_after=None if hopeless else today.left(now))
        self._open[request.id] = today, [name for name, _ in counted]
        return replace(verdict, lease=Lease(self.name, request.id, request.n))

    def _take(self, counted: Sequence[tuple[str, int]], n: int, today: Window) -> bool:
        """Reserve under every limit, or under none."""
        taken: list[str] = []
        try:
            for name, limit in counted:
                if self._counters.reserve(name, n, limit, max(1, limit // _SHARE), today) is None:
                    break
                taken.append(name)
            return len(taken) == len(counted)
        finally:
            if len(taken) < len(counted):
                for name in taken:
                    self._counters.refund(name, n, today)

    @property
    def _counters(self) -> Counters:
        if self.context.counters is None:
            raise PolicyError("rows a day need the counters' store", where="access")
        return self.context.counters

    @hookimpl
    def settle(self, lease: Lease, outcome: Outcome) -> None:
        today, names = self._open.pop(lease.request, (Window(), []))
        for name in names:
            self._counters.refund(name, lease.rows - outcome.rows, today)

    # administrators

    @classmethod
    def rules(cls, config: Any) -> str:
        """The Cedar that decides, formatted."""
        import cedarpy

        return str(cedarpy.format_policies(cedar.text_of(config))).rstrip() + "\n"

    def contradicts(self, releases: Sequence[ReleaseInfo]) -> Sequence[Finding]:
        """Grants whose slice names a column or a value that a release of their model lacks."""
        return [found for grant in self.config.grants for found in self._contradictions(grant, releases)]

    def _contradictions(self, grant: Grant, releases: Iterable[ReleaseInfo]) -> Iterable[Finding]:
        for release in releases:
            if not grant.where or grant.model not in (terms.ALL, release.name):
                continue
            try:
                self._slice(grant.id, release.digest)
            except PolicyError as error:
                where = f"{error.where} on {release.name}:{release.version}"
                yield Finding("error", f"{error.what}{f' ({error.remedy})' if error.remedy else ''}", where)

    @classmethod
    def dry_run(cls, config: Any, state: Any, files: Sequence[Any]) -> Mapping[str, Any]:
        """Recorded decisions, made again by another document."""
        return dryrun.flips(Rules(cedar.text_of(config)), contexts.read(files or contexts.recorded(state)))


def _named(decision: Decision) -> str:
    """The ids of a decision, as many as an entry of the log has room for."""
    more = len(decision.because) - _NAMED
    return ", ".join(decision.because[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _refusal(decision: Decision, action: str) -> str:
    if decision.because:
        return f"access: forbidden by {_named(decision)}"
    return f"access: nothing permits the key to {action} this"
