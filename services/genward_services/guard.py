"""The guard: outermost ASGI middleware, deny by default.

Only listed (method, path) pairs pass, with one content type each and a capped body that is strict JSON. Everything that
the server underneath would answer by itself (its documentation, schema, metrics) is not listed, so it is not there.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genward.errors import GenwardError, UsageError
from genward_services.problem import problem_response

MAX_DEPTH = 16
MAX_DIGITS = 300  # of an integer: as many as a float may stand for
JSON = "application/json"
BODY_SECONDS = 20.0  # in which a body must have arrived,
UPLOAD_SECONDS = 120.0  # and a file
PASSED = "genward.passed"  # where a scope says what the guard found
_LENGTH = 18  # digits of a content-length
_KNOWN = 1024  # paths whose rules are remembered
_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'"),
    (b"referrer-policy", b"no-referrer"),
]


@dataclass(frozen=True)
class Rule:
    """A method and the paths it may be used on; `content` is the one type a body must have, empty for no body.

    A type that is not JSON (one of several, with spaces between) is a file: it is passed on in pieces, to be read once
    its sender is known.
    """

    method: str
    path: re.Pattern[str]
    content: str = ""

    @property
    def is_file(self) -> bool:
        return self.content not in ("", JSON)


@dataclass(frozen=True, slots=True)
class Passed:
    """A request that the guard let through: its rule, the names in its path, its headers by lower-case name (of one
    that is doubled the last), the value of its JSON body."""

    rule: Rule
    names: Mapping[str, str]
    headers: Mapping[bytes, bytes]
    value: Any = None


class Refused(GenwardError):
    """What the guard says no to, with its own status."""

    def __init__(self, status: int, title: str, what: str, allow: str = "") -> None:
        super().__init__(what)
        self.status, self.title, self.allow = status, title, allow


class Guard:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, rules: Sequence[Rule], max_body: int, max_upload: int = 0) -> None:
        self._app, self._rules, self._max_body, self._max_upload = app, rules, max_body, max_upload
        self._known: dict[str, list[tuple[Rule, Mapping[str, str]]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # a websocket is closed before it is accepted
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        secured = _secured(send)
        try:
            rule, names = self._rule(scope["path"], scope["method"])
            headers = {name.lower(): value for name, value in scope["headers"]}
            if rule.is_file:
                scope[PASSED] = Passed(rule, names, headers)
                await self._app(scope, self._file(headers, rule, receive), secured)
                return
            body, value = await self._body(headers, rule, receive)
        except GenwardError as error:
            await problem_response(error)(scope, receive, secured)
            return
        scope[PASSED] = Passed(rule, names, headers, value)
        await self._app(scope, _replayed(body, receive), secured)

    def _rule(self, path: str, method: str) -> tuple[Rule, Mapping[str, str]]:
        here = self._here(path)
        for rule, names in here:
            if rule.method == method or (method == "HEAD" and rule.method == "GET"):
                return rule, names
        allow = ", ".join(sorted({rule.method for rule, _ in here}))
        raise Refused(405, "method not allowed", f"use {allow}", allow)

    def _here(self, path: str) -> list[tuple[Rule, Mapping[str, str]]]:
        """Rules of a path, at least one."""
        here = self._known.get(path)
        if here is None:
            matched = ((rule, rule.path.fullmatch(path)) for rule in self._rules)
            here = [(rule, found.groupdict()) for rule, found in matched if found]
            if not here:
                raise Refused(404, "not found", "there is nothing at this path")
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[path] = here
        return here

    async def _body(self, headers: Mapping[bytes, bytes], rule: Rule, receive: Receive) -> tuple[bytes, Any]:
        _check_length(headers, self._max_body)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._collect(receive)
        except TimeoutError:
            raise Refused(408, "request timeout", "the body did not arrive in time") from None
        if not rule.content:
            if body:
                raise Refused(400, "bad request", "this request has no body")
            return b"", None
        _check_type(headers, rule)
        return body, check_json(body)

    def _file(self, headers: Mapping[bytes, bytes], rule: Rule, receive: Receive) -> Receive:
        """The pieces of a file as they come, until there are too many or they come too slowly. Refusals wait for the
        first look, when its sender is known."""
        most = self._max_upload
        left, until = most, asyncio.get_running_loop().time() + UPLOAD_SECONDS

        async def pieces() -> Message:
            nonlocal left
            _check_length(headers, most)
            _check_type(headers, rule)
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise Refused(408, "request timeout", "the file did not arrive in time") from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise Refused(413, "body too large", f"a file has at most {most} bytes")
            return message

        return pieces

    async def _collect(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "bad request", "the client left")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body:
                raise Refused(413, "body too large", f"a body has at most {self._max_body} bytes")
            if not message.get("more_body", False):
                return b"".join(parts)


def _check_length(headers: Mapping[bytes, bytes], most: int) -> None:
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > _LENGTH or int(length) > most:
        raise Refused(413, "body too large", f"a body has at most {most} bytes")


def _check_type(headers: Mapping[bytes, bytes], rule: Rule) -> None:
    sent = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if sent.decode("latin-1") not in rule.content.split() or b"content-encoding" in headers:
        raise Refused(415, "unsupported media type", f"send {' or '.join(rule.content.split())}, not compressed")


def check_json(body: bytes) -> Any:
    """The value of a strict JSON object; UsageError for doubled keys, NaN, deep nesting, long numbers, bad UTF-8."""
    if _depth(body) > MAX_DEPTH:
        raise UsageError(f"the JSON is nested deeper than {MAX_DEPTH}")
    try:
        value = _STRICT.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not strict JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError("the body is not a JSON object")
    return value


def _depth(body: bytes) -> int:
    """The deepest nesting, brackets in strings counted too: a bound, found without parsing."""
    depth = deepest = 0
    for byte in body.translate(None, _BRACKETS):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _short(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(text)


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_short)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the collected body once, then what else comes (a disconnect)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _secured(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_SECURITY]}
        await send(message)

    return sending


def rule(method: str, pattern: str, content: str = "") -> Rule:
    """A rule from a pattern in which {name} stands for one path segment and {path} for the rest."""
    escaped = re.escape(pattern).replace(r"\{path\}", r"(?P<path>[A-Za-z0-9/._-]+)")
    named = re.sub(r"\\\{([a-z]+)\\\}", r"(?P<\1>[^/]+)", escaped)
    return Rule(method, re.compile(named), content)
