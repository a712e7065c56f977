"""What a decision is about: the shipped Cedar schema, and a question in its terms, every key filled.

A fact that is absent has a sentinel (`start` -1, `address` 0.0.0.0), never a gap: a policy that reads a missing
attribute would be skipped by Cedar, and a skipped `forbid` allows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from genward.contracts import LOCAL, Facts, Principal, ReleaseInfo, Request

ACTIONS = ("generate", "read", "audit", "detect")
NOWHERE = "0.0.0.0"  # noqa: S104 - the sentinel for an address nobody knows
ALL = "*"

_NUMBERS = ("n", "start", "now", "hour", "weekday")
_KINDS = {**dict.fromkeys(_NUMBERS, int), "columns": list, "address": str, "local": bool}
_LONG = 1 << 63

SCHEMA = """
entity Role;
entity Tenant;
entity Key in [Role, Tenant] { tenant: String, token: Bool };
entity Model;
entity Release in [Model] { model: String, version: Long, tenant: String, tenants: Set<String> };
entity Platform;
type Asked = {
  n: Long, start: Long, columns: Set<String>,
  now: Long, hour: Long, weekday: Long,
  address: ipaddr, local: Bool
};
action "generate" appliesTo { principal: Key, resource: Release, context: Asked };
action "read", "audit", "detect" appliesTo { principal: Key, resource: [Release, Platform], context: Asked };
"""


@dataclass(frozen=True, slots=True)
class Question:
    """May this principal do that, to this release (None: to the platform), in this context?"""

    principal: Principal
    action: str
    release: ReleaseInfo | None
    context: Mapping[str, Any]


def question(request: Request, facts: Facts) -> Question:
    """The question that a request poses."""
    columns = sorted({condition.column for condition in request.where})
    start = -1 if request.start is None else request.start
    given = {"n": request.n, "start": start, "columns": columns, **_time(int(facts.now)), **_place(facts.address)}
    return Question(facts.principal, request.action, facts.release, given)


def context(given: Mapping[str, Any], now: int = 1_767_268_800) -> dict[str, Any]:
    """A whole context from some of its keys, for test cases; the rest is one row, asked for in this process on a
    Thursday at noon."""
    place = _place(str(given["address"])) if "address" in given else _place(LOCAL)
    return {"n": 1, "start": -1, "columns": [], **_time(int(given.get("now", now))), **place, **given}


def _time(now: int) -> dict[str, int]:
    """UTC seconds since the epoch, hour of the day, day of the week (Monday is 0)."""
    return {"now": now, "hour": now // 3600 % 24, "weekday": (now // 86_400 + 3) % 7}


def _place(address: str) -> dict[str, Any]:
    local = address == LOCAL
    return {"address": NOWHERE if local or not address else address, "local": local}


def entities(principal: Principal, release: ReleaseInfo | None) -> str:
    """The entities of a question, Cedar JSON."""
    parents = [_uid("Role", role) for role in sorted(principal.roles)] + [_uid("Tenant", principal.tenant)]
    attributes = {"tenant": principal.tenant, "token": principal.key.startswith("oidc:")}
    found = [{"uid": _uid("Key", principal.key), "attrs": attributes, "parents": parents}]
    if release is not None:
        found.append(_release(principal, release))
    return json.dumps(found)


def _release(principal: Principal, release: ReleaseInfo) -> dict[str, Any]:
    """`tenant` is the caller's own where the release is granted to it, else empty."""
    granted = principal.tenant in release.tenants or ALL in release.tenants
    attributes = {
        "model": release.name,
        "version": release.version,
        "tenant": principal.tenant if granted else "",
        "tenants": list(release.tenants),
    }
    return {"uid": resource(release), "attrs": attributes, "parents": [_uid("Model", release.name)]}


def resource(release: ReleaseInfo | None) -> dict[str, str]:
    """The entity that a question is about."""
    return _uid("Platform", "genward") if release is None else _uid("Release", f"{release.name}:{release.version}")


def fits(given: Mapping[str, Any]) -> bool:
    """Whether a context is one under the schema: every key there, none more, of its type. Of what does not fit Cedar
    says why; where no policy reads the context, it is not asked about one that fits."""
    return (
        given.keys() == _KINDS.keys()
        and all(type(given[name]) is kind for name, kind in _KINDS.items())
        and all(-_LONG <= given[name] < _LONG for name in _NUMBERS)
        and all(type(column) is str for column in given["columns"])
        and _is_address(given["address"])
    )


@lru_cache(4096)
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def asked(question: Question) -> dict[str, Any]:
    """A question as Cedar takes it."""
    place = {"__extn": {"fn": "ip", "arg": question.context["address"]}}
    return {
        "principal": _uid("Key", question.principal.key),
        "action": _uid("Action", question.action),
        "resource": resource(question.release),
        "context": {**question.context, "address": place},
    }


def around(question: Question) -> dict[str, set[tuple[str, str]]]:
    """Entities that a policy's scope may name for this question: each variable, and what it is in."""
    principal, release = question.principal, question.release
    of_key = {("Key", principal.key), ("Tenant", principal.tenant), *(("Role", role) for role in principal.roles)}
    here = resource(release)
    of_release = {(here["type"], here["id"]), *([("Model", release.name)] if release else [])}
    return {"principal": of_key, "action": {("Action", question.action)}, "resource": of_release}


def to_json(question: Question) -> dict[str, Any]:
    """A question as a recorded line keeps it."""
    principal, release = question.principal, question.release
    who = {"tenant": principal.tenant, "key": principal.key, "roles": sorted(principal.roles)}
    what = None if release is None else {"model": release.name, "version": release.version}
    if what is not None and release is not None:
        what["tenants"] = list(release.tenants)
    return {"principal": who, "action": question.action, "resource": what, "context": dict(question.context)}


def from_json(data: Mapping[str, Any]) -> Question:
    """A recorded question; KeyError, TypeError or ValueError when it is none."""
    who, what = data["principal"], data["resource"]
    principal = Principal(str(who["tenant"]), str(who["key"]), frozenset(map(str, who["roles"])))
    release = None
    if what is not None:
        release = ReleaseInfo(str(what["model"]), int(what["version"]), "", tuple(map(str, what["tenants"])))
    return Question(principal, str(data["action"]), release, dict(data["context"]))


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}
