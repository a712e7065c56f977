"""Entries, schema v1: canonical JSON (RFC 8785) of at most 4 kB that says who did what, and never the content.

    {v, t, event: grant|settle|refuse|release|act, request, tenant, actor, model, policy,
     plan: {start, n, cells, segments, k, reach}, status: served|denied|error|lost|aborted, out: {rows, digest},
     grant: index, cost: {cpu_us, computed, bytes, price_pico}}

An `act` carries `act` (its verb, for example policy.activate or log.start) and `detail`; `reasons` say why a request
was refused, or what allowed it; `commit` names salted commitments. The writer owns index and time: producers leave `t`
out and `stamp` puts it in.
The log itself takes any bytes; this is the one module that knows the schema.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from genward_audit.errors import FormatError, UsageError

VERSION = 1
MAX_BYTES = 4096
EVENTS = ("grant", "settle", "refuse", "release", "act")
STATUSES = ("served", "denied", "error", "lost", "aborted")
START, STOP, RETAIN, ROTATE, CLOCK = "log.start", "log.stop", "log.retain", "log.rotate", "log.clock"

_MAX_INT = (1 << 53) - 1  # I-JSON, RFC 7493 section 2.2: what every reader holds exactly
_MAX_DEPTH = 8
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)

Entry = dict[str, Any]
Check = Callable[[Any], bool]


def canonical(value: Any) -> bytes:
    """RFC 8785 bytes of str, int, bool, None, list and dict; keys are ASCII, so that sorting by code points is
    sorting by UTF-16 units; floats have no place in a signed record. Raises FormatError."""
    _check_value(value, 0)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("a string has half of a surrogate pair") from None


def _check_value(value: Any, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise FormatError(f"values are nested deeper than {_MAX_DEPTH}")
    if type(value) is int and abs(value) > _MAX_INT:
        raise FormatError(f"{value} does not fit 53 bits", remedy="write it as a string")
    if isinstance(value, Mapping):
        for key, one in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise FormatError(f"{key!r} is not an ASCII key")
            _check_value(one, depth + 1)
    elif isinstance(value, list | tuple):
        for one in value:
            _check_value(one, depth + 1)
    elif value is not None and not isinstance(value, str | int):
        raise FormatError(f"{type(value).__name__} has no canonical form here", remedy="write it as a string")


def decode(data: bytes) -> Any:
    """The value of canonical JSON; anything that is not its own canonical form is refused. Raises FormatError."""
    try:
        value = json.loads(data.decode("utf-8"), parse_float=_no_float, parse_constant=_no_float)
    except (ValueError, RecursionError):
        raise FormatError("an entry is not JSON") from None
    if canonical(value) != data:
        raise FormatError("an entry is not in canonical form (RFC 8785)")
    return value


def _no_float(text: str) -> float:
    raise ValueError(text)


def _text(limit: int) -> Check:
    return lambda value: isinstance(value, str) and 0 < len(value) <= limit


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _map_of(**checks: Check) -> Check:
    def check(value: Any) -> bool:
        return isinstance(value, dict) and all(key in checks and checks[key](one) for key, one in value.items())

    return check


def _is_time(value: Any) -> bool:
    return isinstance(value, str) and _TIME.fullmatch(value) is not None


def _list_or_count(value: Any) -> bool:
    return _count(value) or isinstance(value, list) or (isinstance(value, str) and len(value) <= 200)


_CHECKS: dict[str, Check] = {
    "v": lambda value: type(value) is int and value == VERSION,
    "t": _is_time,
    "event": lambda value: value in EVENTS,
    "request": _text(100),
    "tenant": _text(200),
    "actor": _text(200),
    "model": _text(300),
    "policy": _text(200),
    "plan": _map_of(start=_count, n=_count, cells=_list_or_count, segments=_list_or_count, k=_count, reach=_count),
    "status": lambda value: value in STATUSES,
    "out": _map_of(rows=_count, digest=_text(200)),
    "grant": _count,
    "cost": _map_of(cpu_us=_count, computed=_count, bytes=_count, price_pico=_count),
    "act": _text(100),
    "detail": lambda value: isinstance(value, dict),
    "reasons": _texts,
    "commit": lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value.values()),
}
_REQUIRED = {
    "grant": ("request", "plan"),
    "settle": ("request", "status"),
    "refuse": ("status",),
    "release": ("model",),
    "act": ("act",),
}


def check(entry: Any) -> Entry:
    """The entry if it follows schema v1, with or without its time; raises FormatError."""
    if not isinstance(entry, dict):
        raise FormatError("an entry is an object")
    for key, value in entry.items():
        if key not in _CHECKS:
            raise FormatError(f"an entry has no field {key!r}", remedy="put it under detail")
        if not _CHECKS[key](value):
            raise FormatError(f"field {key!r} of an entry cannot be {str(value)[:80]!r}")
    missing = [key for key in ("v", "event", *_REQUIRED.get(entry.get("event", ""), ())) if key not in entry]
    if missing:
        raise FormatError(f"an entry lacks {', '.join(missing)}")
    return entry


def encode(event: str, **fields: Any) -> bytes:
    """A new entry without its time; fields that are None are left out. Raises FormatError."""
    entry = {"v": VERSION, "event": event} | {key: one for key, one in fields.items() if one is not None}
    return _fit(canonical(check(entry)))


def _fit(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise FormatError(f"an entry has at most {MAX_BYTES} bytes, not {len(data)}", remedy="log a digest instead")
    return data


def parse(data: bytes) -> Entry:
    """Read an entry of schema v1 strictly; raises FormatError."""
    return check(decode(_fit(data)))


def stamp(entry: bytes, time: float) -> bytes:
    """The entry with its time, seconds since the epoch; the writer's part. Raises FormatError."""
    return _fit(canonical(parse(entry) | {"t": format_time(time)}))


def format_time(time: float) -> str:
    """UTC with microseconds, as entries have it: 2026-11-22T10:00:00.123456Z."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> float:
    """Seconds since the epoch; raises FormatError."""
    try:
        if not _is_time(text):
            raise ValueError(text)
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise FormatError(f"{text[:40]!r} is not a time", remedy="write 2026-11-22T10:00:00.000000Z") from None


def commit(salt: bytes, value: Any) -> str:
    """A commitment to a value: HMAC-SHA-256 (RFC 2104) of its canonical form under a salt or key of at least 16
    bytes. A bare hash of a small set of values could be guessed by trying them all."""
    if len(salt) < 16:
        raise UsageError("a salt has at least 16 bytes")
    return "hmac-sha256:" + hmac.new(salt, canonical(value), sha256).hexdigest()


def act_entry(act: str, *, actor: str | None = None, tenant: str | None = None, **detail: Any) -> bytes:
    """An administrator's or the program's act."""
    return encode("act", act=act, actor=actor, tenant=tenant, detail=detail or None)


def start_entry(size: int, **detail: Any) -> bytes:
    """The writer starts when the log has `size` entries, so this one's index is `size`."""
    return act_entry(START, size=size, **detail)


def stop_entry(size: int, **detail: Any) -> bytes:
    """The writer stops in good order when the log has `size` entries, so this one's index is `size`."""
    return act_entry(STOP, size=size, **detail)


def retain_entry(minimum: int, actor: str | None = None) -> bytes:
    """Entries below `minimum` may be deleted from now on."""
    return act_entry(RETAIN, actor=actor, minimum=minimum)


def rotate_entry(old: str, new: str, actor: str | None = None) -> bytes:
    """The log's key changes from vkey `old` to vkey `new`; the old key still signs the checkpoint that covers this."""
    return act_entry(ROTATE, actor=actor, old=old, new=new)


def clock_entry(before: float, after: float) -> bytes:
    """The machine's clock jumped back from `before` to `after`; until it has caught up the log's times stand still."""
    return act_entry(CLOCK, before=format_time(before), after=format_time(after))
