"""HTTP routes. Each is a few lines: read the request, go through the pipeline, answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from genward import receipt as receipts
from genward.api import Platform
from genward.contracts import Credential, Principal, ReleaseInfo
from genward.errors import GenwardError, NotFound, UsageError
from genward.request import Ask
from genward.request import Response as Found
from genward.respond import ARROW, CSV, PARQUET, media_type
from genward_services import detection, openapi, openinference
from genward_services.address import ADDRESS, client_address, proxies
from genward_services.guard import PASSED, Guard, Passed, Refused, Rule, rule
from genward_services.problem import problem_response

Handler = Callable[[Platform, Request], Awaitable[Response]]
_log = logging.getLogger("genward.http")
_JSON = "application/json"
_TILE = re.compile(r"(checkpoint|tile/[0-9a-z/.]+)", re.ASCII)
_FIELDS = {"n", "where", "from"}
_EXACT = 1 << 53  # up to here a float is the integer that was written
MOST_CONDITIONS = 100


async def generate(platform: Platform, request: Request) -> Response:
    """POST /v1/models/{name}/generate: {"n": 10, "where": ["density>5"], "from": 0}."""
    body = request.scope[PASSED].value
    return await answer(platform, await readable(platform, request, lambda: _ask(request, body)))


async def readable(platform: Platform, request: Request, read: Callable[[], Ask]) -> Ask:
    """What a request asks; one that cannot be read is refused by the pipeline, once it knows who sent it."""
    try:
        return read()
    except GenwardError as error:
        await platform.pipeline.refuse(key_of(request), request.path_params["name"], error)
        raise


def _ask(request: Request, body: Mapping[str, Any]) -> Ask:
    unknown = body.keys() - _FIELDS
    if unknown:
        raise UsageError(
            f"unknown fields: {', '.join(sorted(unknown))}", remedy=f"known are {', '.join(sorted(_FIELDS))}"
        )
    return Ask(
        key_of(request), request.path_params["name"], whole(body.get("n", 1)), _where(body), _start(body),
        media_type(header(request, b"accept") or _JSON),
    )  # fmt: skip


async def answer(platform: Platform, ask: Ask) -> Response:
    """Through the pipeline; whole, or in pieces."""
    found = await platform.pipeline.generate(ask)
    if found.pieces is None:
        return Whole(found)
    return StreamingResponse(found.pieces, headers=dict(found.headers), media_type=found.media)


class Whole(Response):
    """A body held in memory, its headers written once."""

    def __init__(self, found: Found) -> None:
        self.status_code, self.body, self.background = 200, found.body, None
        given = {**found.headers, "content-type": _content(found.media), "content-length": str(len(found.body))}
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()]


def _content(media: str) -> str:
    return f"{media}; charset=utf-8" if media.startswith("text/") else media


async def models(platform: Platform, request: Request) -> Response:
    """GET /v1/models: releases this key's tenant may use."""
    principal = await platform.pipeline.read(key_of(request), "read")
    rows = await anyio.to_thread.run_sync(platform.releases)
    seen = [row for row in rows if _may_see(principal, row)]
    return JSONResponse({"models": [_about(platform, row) for row in seen]})


async def model(platform: Platform, request: Request) -> Response:
    """GET /v1/models/{name}: the card of a release."""
    name = request.path_params["name"]
    async with platform.pipeline.reading(key_of(request), "read", name) as principal:
        visible(platform, principal, name)
        return JSONResponse(await anyio.to_thread.run_sync(platform.card, name))


def visible(platform: Platform, principal: Principal, name: str) -> ReleaseInfo:
    """A release that the caller's tenant may use; NotFound for any other."""
    info = platform.registry.resolve(name)
    if principal.tenant not in info.tenants and "*" not in info.tenants:
        raise NotFound(f"no release {name!r}", remedy="`genward model list` shows them")
    return info


async def receipt(platform: Platform, request: Request) -> Response:
    """GET /v1/receipts/{request}: proof of a request's entries; 202 until a checkpoint covers them."""
    name = request.path_params["request"]
    async with platform.pipeline.reading(key_of(request), "read") as principal:
        made = lambda: receipts.make(platform.audit, platform.keys, name, principal, platform.audit.vkey())  # noqa: E731
        found = await anyio.to_thread.run_sync(made)
    if found is None:
        return JSONResponse({"request": name, "status": "not covered yet"}, 202, {"retry-after": "1"})
    return JSONResponse(found)


async def log(platform: Platform, request: Request) -> Response:
    """GET /v1/log/...: the log's own files (C2SP tlog-tiles), for auditors' tools."""
    await platform.pipeline.read(key_of(request), "audit")
    name = request.path_params["path"]
    path = platform.state.log_dir / name
    if not _TILE.fullmatch(name) or ".." in name or not path.is_file():
        raise NotFound("the log has no such file", where=name)
    data = await anyio.to_thread.run_sync(path.read_bytes)
    return Response(data, media_type="text/plain" if name == "checkpoint" else "application/octet-stream")


async def described(platform: Platform, request: Request) -> Response:
    """GET /v1/openapi.json: what is served here, OpenAPI 3.1."""
    return JSONResponse(openapi.document(platform.state.config.server.max_rows))


async def live(platform: Platform, request: Request) -> Response:
    """GET /livez: this process answers."""
    return PlainTextResponse("ok")


async def ready(platform: Platform, request: Request) -> Response:
    """GET /readyz: registry, policy and log answer."""
    platform.registry.active_policy()
    await anyio.to_thread.run_sync(platform.audit.vkey)
    return PlainTextResponse("ok")


async def metrics(platform: Platform, request: Request) -> Response:
    """GET /metrics: counters of this worker, Prometheus text; for auditors."""
    await platform.pipeline.read(key_of(request), "audit")
    return PlainTextResponse(platform.pipeline.metrics(), media_type="text/plain; version=0.0.4")


ROUTES: list[tuple[str, str, Handler, str]] = [
    ("POST", "/v1/models/{name}/generate", generate, _JSON),
    ("POST", "/v1/detect", detection.detect, f"{CSV} {PARQUET} {ARROW}"),
    ("GET", "/v1/models", models, ""),
    ("GET", "/v1/models/{name}", model, ""),
    ("GET", "/v1/receipts/{request}", receipt, ""),
    ("GET", "/v1/log/{path}", log, ""),
    ("GET", "/v1/openapi.json", described, ""),
    ("GET", "/livez", live, ""),
    ("GET", "/readyz", ready, ""),
    ("GET", "/metrics", metrics, ""),
    ("GET", "/v2/health/live", live, ""),
    ("GET", "/v2/health/ready", ready, ""),
    ("GET", "/v2/models/{name}", openinference.metadata, ""),
    ("POST", "/v2/models/{name}/infer", openinference.infer, _JSON),
]


def make_app(platform: Platform) -> ASGIApp:
    """The whole HTTP surface behind the guard, for any ASGI server."""
    server = platform.state.config.server
    return Guard(routes_app(platform), rules(), server.max_body, server.max_upload)


def routes_app(platform: Platform) -> ASGIApp:
    """The routes alone; only for where the guard stands around more than them."""
    return Routes(platform)


class Routes:
    """Calls the handler of the rule by which the guard let a request through; what it did not see is not answered."""

    def __init__(self, platform: Platform) -> None:
        self._platform, self._proxies = platform, proxies(platform.state.config.server.proxies)
        self._handlers = {(verb, rule(verb, path).path): handler for verb, path, handler, _ in ROUTES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        response = await self._answer(scope, receive)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        passed: Passed | None = scope.get(PASSED)
        if passed is None:
            return problem_response(Refused(404, "not found", "there is nothing at this path"))
        scope["path_params"] = passed.names
        scope[ADDRESS] = client_address(scope, self._proxies)
        try:
            return await self._handlers[passed.rule.method, passed.rule.path](self._platform, Request(scope, receive))
        except GenwardError as error:
            return problem_response(error)
        except Exception:
            _log.exception("a handler failed")
            return problem_response(GenwardError("something went wrong here"))


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing to start or stop (ASGI lifespan protocol 2.0)."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def rules() -> list[Rule]:
    """What the guard lets through: exactly the routes."""
    return [rule(method, path, content) for method, path, _, content in ROUTES]


def key_of(request: Request) -> Credential:
    """The bearer token, empty without one, which is no valid key; and the address of who sent it."""
    scheme, _, token = header(request, b"authorization").partition(" ")
    return Credential(token.strip() if scheme.lower() == "bearer" else "", request.scope.get(ADDRESS, ""))


def header(request: Request, name: bytes) -> str:
    """A header of a request that the guard let through; empty without one."""
    passed: Passed = request.scope[PASSED]
    return passed.headers.get(name, b"").decode("latin-1")


def _where(body: Mapping[str, Any]) -> tuple[str, ...]:
    return conditions(body.get("where", []))


def conditions(where: Any) -> tuple[str, ...]:
    """A list of at most 100 conditions; UsageError for anything else."""
    if not isinstance(where, list) or not all(isinstance(clause, str) for clause in where):
        raise UsageError("`where` is a list of conditions", remedy='for example ["density>5"]')
    if len(where) > MOST_CONDITIONS:
        raise UsageError(f"{len(where)} conditions", remedy=f"give at most {MOST_CONDITIONS}")
    return tuple(where)


def whole(value: Any) -> Any:
    """A whole number as int, however JSON wrote it: 4.0 is an integer there (JSON Schema 2020-12 section 6.1.1)."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else value


def _start(body: Mapping[str, Any]) -> int | None:
    start = whole(body.get("from"))
    if start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
        raise UsageError("`from` is a position, 0 or more")
    return start


def _may_see(principal: Principal, row: Mapping[str, Any]) -> bool:
    return (
        row["stage"] == "ready"
        and principal.may_see(row["name"])
        and (principal.tenant in row["tenants"] or "*" in row["tenants"])
    )


def _about(platform: Platform, row: Mapping[str, Any]) -> dict[str, Any]:
    served = platform.pipeline.shelf.at_hand(platform.registry.resolve(f"{row['name']}:{row['version']}"))
    names = ("name", "version", "aliases", "digest", "created")
    found: dict[str, Any] = {name: row[name] for name in names}
    return found | {"provider": served.engine.provider if served else None}  # known once a session is open
