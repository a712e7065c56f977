"""The guard: what is not listed is not there, and a body is small, strict JSON of one type."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward.errors import GenwardError
from genward_services import guard
from genward_services.app import ROUTES, make_app, rules
from genward_services.guard import check_json

PROBLEM = "application/problem+json"
OPEN = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/v1/openapi.json"}
BENTOML_OWN = [
    "/",
    "/docs.json",
    "/schema.json",
    "/healthz",
    "/docs",
    "/static_content/x",
    "/generate",
    "/openapi.json",
]


def _path(pattern: str) -> str:
    return pattern.format(name="pool:1", request="r", path="checkpoint")


@pytest.mark.parametrize(("method", "pattern"), [(m, p) for m, p, _, _ in ROUTES])
def test_every_route_needs_a_key_but_the_health_of_the_process(server: Any, method: str, pattern: str) -> None:
    """Law 3: nothing is told to nobody."""
    for key in (None, "gw_no_such_key", "x" * 5000):
        reply = server.ask(method, _path(pattern), {} if method == "POST" else None, key=key)
        assert reply.status == (200 if pattern in OPEN else 401)
        if reply.status == 401:
            assert reply.headers["content-type"] == PROBLEM
            assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", BENTOML_OWN)
def test_what_bentoml_would_answer_by_itself_is_not_there(server: Any, path: str) -> None:
    reply = server.ask("GET", path)
    assert (reply.status, reply.headers["content-type"]) == (404, PROBLEM)


@pytest.mark.parametrize(
    "path",
    ["/v1/models/", "/v1//models", "/v1/models/a/b", "/v1/models/pool:1/generate/", "/v1/log/../keys/master",
     "/v1/log/%2e%2e/keys/master", "/V1/models", "/v1/models%00"],
)  # fmt: skip
def test_a_path_near_a_route_is_no_route(server: Any, path: str) -> None:
    assert server.ask("GET", path, key=server.world.auditor).status in (404, 405)


@pytest.mark.parametrize(("method", "pattern"), [(m, p) for m, p, _, _ in ROUTES])
def test_another_method_is_refused(server: Any, method: str, pattern: str) -> None:
    for other in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - {method}:
        reply = server.ask(other, _path(pattern))
        if (other, pattern) not in {(m, p) for m, p, _, _ in ROUTES}:
            assert (reply.status, reply.headers["content-type"]) == (405, PROBLEM)
            assert method in reply.headers["allow"].split(", ")


def test_metrics_are_for_auditors(server: Any) -> None:
    assert server.ask("GET", "/metrics").status == 403
    reply = server.ask("GET", "/metrics", key=server.world.auditor)
    assert b"genward_requests_total" in reply.body


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "application/vnd.bentoml+pickle"}, {"Content-Type": "text/plain"}, {"Content-Type": ""},
     {"Content-Type": "multipart/form-data"}, {"Content-Type": "application/json", "Content-Encoding": "gzip"}],
)  # fmt: skip
def test_one_content_type_and_no_pickle(server: Any, headers: dict[str, str]) -> None:
    reply = server.ask("POST", "/v1/models/pool:1/generate", b'{"n": 1}', headers=headers)
    assert (reply.status, reply.headers["content-type"]) == (415, PROBLEM)


BODIES = [
    b'{"n": 1, "n": 2}', b'{"n": NaN}', b'{"n": Infinity}', b"[1]", b'"n"', b"", b"{", b'{"n": 1}x', b"\xff\xfe{}",
    b'{"n": ' + b"9" * 40 + b"}", b'{"n": ' + b"9" * 400 + b"}", b"[" * 500_000,
    b'{"where": ' + b"[" * 50 + b"]" * 50 + b"}",
    b'{"n": 1, "url": "http://example.org"}', b'{"n": 1, "where": "density>5"}', b'{"n": 1, "where": [3]}',
    b'{"n": 1, "from": -1}', b'{"n": 1, "from": true}', b'{"n": 1, "from": "0"}', b'{"n": 1, "where": ["nonsense>1"]}',
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
def test_a_body_that_is_no_strict_json_is_refused(server: Any, body: bytes) -> None:
    reply = server.ask("POST", "/v1/models/pool:1/generate", body, headers={"Content-Type": "application/json"})
    assert (400 <= reply.status < 500, reply.headers["content-type"]) == (True, PROBLEM)
    assert set(reply.json()) <= {"type", "title", "status", "detail", "request"}


def test_a_body_over_the_cap_is_refused_with_and_without_its_length(server: Any) -> None:
    body = b'{"n": 1, "where": ["' + b"a" * (1 << 20) + b'"]}'
    head = {"Content-Type": "application/json", "Authorization": f"Bearer {server.world.key}"}
    assert server.ask("POST", "/v1/models/pool:1/generate", body, headers=head).status == 413
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    try:
        pieces = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
        connection.request("POST", "/v1/models/pool:1/generate", pieces, head, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server answered and closed before everything was sent
    finally:
        connection.close()


def test_a_get_with_a_body_is_refused(server: Any) -> None:
    assert server.ask("GET", "/v1/models", {"n": 1}).status == 400


def test_a_websocket_is_closed_before_it_is_accepted(server: Any) -> None:
    lines = ["GET /v1/models HTTP/1.1", f"Host: {server.host}", "Upgrade: websocket", "Connection: Upgrade",
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", ""]  # fmt: skip
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode())
        assert b" 101 " not in connection.recv(4096).split(b"\r\n")[0]


def test_every_answer_carries_the_security_headers(server: Any) -> None:
    for reply in (server.rows(1), server.ask("GET", "/nothing"), server.ask("GET", "/v1/models", key=None)):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"


def test_refusals_tell_no_limit_of_the_policy(make_world: Any, start_server: Any) -> None:
    world = make_world()
    text = world.platform.policy_text().replace("per_request: 20000000", "per_request: 777")
    world.activate(text)
    served = start_server(world)
    reply = served.rows(778)
    assert reply.status == 403
    told = {**reply.json(), "request_id": ""}  # a random one may hold any digits
    assert "777" not in json.dumps(told)
    assert served.ask("GET", "/metrics").json()["detail"] == "a policy denied this"


async def _answer(
    app: Any, messages: Sequence[dict[str, Any]], pause: float = 0.0, **more: Any
) -> list[dict[str, Any]]:
    """What an ASGI application sends when it is given these messages, with a pause before each."""
    waiting = list(messages)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/models/m/generate", "headers": [], **more}
    await app(scope, receive, send)
    return sent


def _part(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def test_a_slow_body_is_not_waited_for(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    sent = asyncio.run(_answer(make_app(world.platform), [_part(b"{")] * 100, pause=0.05))
    assert sent[0]["status"] == 408


def test_a_client_that_leaves_in_its_body_reaches_no_route(world: Any) -> None:
    before = len(world.log())
    sent = asyncio.run(_answer(make_app(world.platform), [_part(b"{")]))
    assert sent[0]["status"] == 400
    assert len(world.log()) == before


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"99999999999", b"\xb2"])
def test_a_content_length_that_is_none_is_refused(world: Any, length: bytes) -> None:
    sent = asyncio.run(_answer(make_app(world.platform), [_part(b"{}", False)], headers=[(b"content-length", length)]))
    assert sent[0]["status"] == 413


def test_the_guard_lists_exactly_the_routes() -> None:
    assert len(rules()) == len(ROUTES)
    for rule, (method, pattern, _, content) in zip(rules(), ROUTES, strict=True):
        assert (rule.method, rule.content) == (method, content)
        assert rule.path.fullmatch(_path(pattern))
        assert not rule.path.fullmatch(_path(pattern) + "/x") or "{path}" in pattern


@given(st.recursive(st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(), st.lists, max_leaves=20))
def test_strict_json_reads_what_json_writes(value: Any) -> None:
    body = json.dumps({"n": value}).encode()
    try:
        assert check_json(body) == {"n": value}
    except GenwardError as error:
        assert "nested" in str(error)


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused_in_our_words(body: bytes) -> None:
    try:
        assert isinstance(check_json(body), dict)
    except GenwardError:
        return
