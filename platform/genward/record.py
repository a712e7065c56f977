"""Entries of the audit log, schema v1, as the request pipeline writes them: canonical JSON, commitments, no content."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from genward.contracts import Condition, KeyProvider

if TYPE_CHECKING:
    from genward.table import Walk

VERSION = 1


def entry(event: str, **fields: Any) -> bytes:
    """Canonical JSON (RFC 8785 for values without floats) of the fields that are not None; the log puts in the time."""
    given = {name: value for name, value in fields.items() if value is not None}
    return orjson.dumps({**given, "event": event, "v": VERSION}, option=orjson.OPT_SORT_KEYS)


def act(verb: str, actor: str = "", tenant: str = "", **detail: Any) -> bytes:
    """An administrator's act."""
    return entry("act", act=verb, actor=actor or None, tenant=tenant or None, detail=detail or None)


def request_id() -> str:
    """A new request's id: UUIDv7 (RFC 9562 section 5.7), so that ids sort by time."""
    raw = int(time.time() * 1000).to_bytes(6, "big") + os.urandom(10)
    number = bytearray(raw)
    number[6] = number[6] & 0x0F | 0x70
    number[8] = number[8] & 0x3F | 0x80
    text = number.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def salt(keys: KeyProvider, request: str) -> bytes:
    """The salt of a request's commitments: the server can derive it again, nobody else can."""
    return keys.derive(f"commit/{request}", 16)


def commitment(salt: bytes, value: bytes) -> str:
    """HMAC-SHA-256 of a value under the request's salt; a bare hash of few possible values could be guessed."""
    return f"hmac-sha256:{hmac.new(salt, value, hashlib.sha256).hexdigest()}"


def added(where: Sequence[Condition]) -> bytes:
    """Clauses that policies joined to a request, for a commitment to them and for the header that tells the caller."""
    return orjson.dumps([[clause.column, clause.op, clause.value] for clause in where])


def asked(where: Sequence[str]) -> bytes:
    """The conditions of a request as it sent them, in any order, for a commitment to them."""
    return orjson.dumps(sorted(where))


def plan_fields(start: int, scanned: int, cells: Any, walk: Walk) -> Mapping[str, Any]:
    """The plan of a page as the log keeps it: enough to compute the rows again."""
    fields: dict[str, Any] = {"start": start, "n": scanned, "segments": walk.segments, "k": walk.table.candidates}
    more = {"cells": None if cells is None else list(cells), "reach": walk.reach}
    return fields | {name: value for name, value in more.items() if value is not None}
