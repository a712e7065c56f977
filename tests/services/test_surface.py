"""The surface under attack: floods, silence, smuggling and forged keys are refused and cost neither memory nor time."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genward.api import Platform
from genward_services import wire

GENERATE = "/v1/models/pool:1/generate"
JSON = {"Content-Type": "application/json"}
MB = 1 << 20


@pytest.fixture(scope="module")
def lone(make_world: Callable[..., Any], start_server: Callable[..., Any]) -> Any:
    """A server whose memory nobody else moves, with a request behind it."""
    served = start_server(make_world())
    for _ in range(30):
        assert served.rows(50).status == 200
    return served


def _memory(folder: Path) -> int:
    """Resident bytes of all processes of a server."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(folder).encode() in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                found += 4096 * int((entry / "statm").read_text().split()[1])
    return found


@pytest.fixture
def flat(lone: Any) -> Iterator[Any]:
    """The server takes no more memory after a test than before it, to 24 MB, and answers."""
    before = _memory(lone.world.folder)
    yield lone
    assert lone.rows(3).status == 200
    assert _memory(lone.world.folder) - before < 24 * MB


def _raw(served: Any, *parts: bytes) -> bytes:
    """What comes back for bytes sent as they are; what cannot be sent any more is left out."""
    with closing(socket.create_connection((served.host, served.port), timeout=20)) as connection:
        with suppress(OSError):
            for part in parts:
                connection.sendall(part)
        return _rest(connection)


def _rest(connection: socket.socket) -> bytes:
    found = b""
    with suppress(OSError):
        while piece := connection.recv(1 << 16):
            found += piece
    return found


def _head(served: Any, *lines: str, method: str = "POST", path: str = GENERATE) -> bytes:
    first = [f"{method} {path} HTTP/1.1", f"Host: {served.host}", f"Authorization: Bearer {served.world.key}"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


# memory


def test_forty_megabytes_of_json_are_refused_before_they_arrive(flat: Any) -> None:
    """With their length and in chunks, and while they still come in."""
    body = b'{"n": 1, "where": ["' + b"a" * (40 * MB) + b'"]}'
    sized = _head(flat, "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
    assert b" 413 " in _raw(flat, sized, body).split(b"\r\n")[0]
    chunked = _head(flat, "Content-Type: application/json", "Transfer-Encoding: chunked", "Connection: close")
    said = _raw(flat, chunked, *(b"10000\r\n" + b"a" * 65_536 + b"\r\n" for _ in range(640)), b"0\r\n\r\n")
    assert b" 413 " in said.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "flood",
    [lambda: (f"X-{i}: {'a' * 900}\r\n".encode() for i in range(40_000)), lambda: (b"X-A: " + b"a" * MB,) * 40,
     lambda: (b"a" * MB,) * 40],
    ids=["many headers", "one long header", "a long method"],
)  # fmt: skip
def test_a_flood_of_headers_is_cut_off(flat: Any, flood: Any) -> None:
    said = _raw(flat, f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\n".encode(), *flood())
    assert said == b"" or b" 431 " in said.split(b"\r\n")[0] or b" 400 " in said.split(b"\r\n")[0]


def test_a_long_path_is_cut_off(flat: Any) -> None:
    said = _raw(flat, b"GET /" + b"a" * MB, b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert said == b"" or b" 431 " in said.split(b"\r\n")[0]


def test_a_head_just_under_the_bound_passes_and_one_over_it_is_a_problem(flat: Any) -> None:
    long = "X-Padding: " + "a" * (wire.MAX_HEAD - 2000)
    asked = _head(flat, long, "Connection: close", method="GET", path="/v1/models")
    assert b" 200 " in _raw(flat, asked).split(b"\r\n")[0]
    over = _raw(flat, _head(flat, long, "X-More: " + "a" * 2000, method="GET", path="/v1/models"))
    head, _, body = over.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["status"] == 431


def test_a_thousand_idle_connections_keep_nobody_from_being_served(flat: Any) -> None:
    with ExitStack() as stack:
        for i in range(1000):
            connection = stack.enter_context(socket.create_connection((flat.host, flat.port), timeout=20))
            if i % 2:
                connection.sendall(b"POST /v1/mod")
        for _ in range(20):
            assert flat.rows(5).status == 200


def test_bodies_that_trickle_keep_nobody_from_being_served(flat: Any) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((flat.host, flat.port), timeout=20)) for _ in range(200)]
        for connection in slow:
            connection.sendall(_head(flat, "Content-Type: application/json", "Content-Length: 1000") + b"{")
        for connection in slow:
            connection.sendall(b'"')
        assert {flat.rows(5).status for _ in range(10)} == {200}


# time


async def _spoken(monkeypatch: pytest.MonkeyPatch, *parts: bytes, pause: float = 0.0) -> bytes:
    """What a uvicorn server with our protocol and short patience answers to bytes sent piece by piece."""
    import asyncio

    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    monkeypatch.setattr(wire, "HEAD_SECONDS", 0.3)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=wire.Wire, lifespan="off", log_config=None))
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        found = asyncio.create_task(reader.read())
        for part in parts:
            with suppress(OSError):
                writer.write(part)
                await writer.drain()
            await asyncio.sleep(pause)
        try:
            return await asyncio.wait_for(found, 10)
        finally:
            writer.close()
            server.should_exit = True
            await task


@pytest.mark.parametrize(
    "parts",
    [(b"",), (b"GET / HT",), (b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 20)],
    ids=["silence", "half a line", "a header at a time"],
)
def test_a_head_that_does_not_arrive_in_time_is_not_waited_for(monkeypatch: Any, parts: Any) -> None:
    import asyncio

    said = asyncio.run(_spoken(monkeypatch, *parts, pause=0.05))
    assert said.startswith(b"HTTP/1.1 408 ")


def test_requests_on_one_connection_each_have_their_time_and_their_bound(monkeypatch: Any) -> None:
    import asyncio

    whole = b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * (wire.MAX_HEAD - 1000) + b"\r\n\r\n"
    said = asyncio.run(_spoken(monkeypatch, whole, whole, whole, pause=0.2))
    assert said.count(b"HTTP/1.1 200 ") == 3


def test_blank_lines_after_a_response_do_not_keep_a_connection(monkeypatch: Any) -> None:
    import asyncio

    said = asyncio.run(_spoken(monkeypatch, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", *[b"\r\n"] * 30, pause=0.05))
    assert said.startswith(b"HTTP/1.1 200 ")


# smuggling

PICKLE = base64.b64decode("gASVIwAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAh0b3VjaCAvdJSFlFKULg==")


@pytest.mark.parametrize(
    "path", ["/generate", "/predict", "/call/generate", "/runner", "/", "/v1/models/pool:1/generate"]
)
@pytest.mark.parametrize(
    "content",
    ["application/vnd.bentoml+pickle", "application/octet-stream", "application/x-www-form-urlencoded",
     "multipart/form-data; boundary=x", "Application/VND.BentoML+Pickle"],
)  # fmt: skip
def test_a_pickle_is_nowhere_taken(lone: Any, path: str, content: str) -> None:
    headers = {
        "Content-Type": content,
        "Bentoml-Payload-Meta": "{}",
        "Payload-Container": "Default",
        "Runner-Name": "x",
    }
    assert lone.ask("POST", path, PICKLE, headers=headers).status in (404, 415)


def test_lengths_that_contradict_each_other_give_no_rows(lone: Any) -> None:
    """CL.TE, TE.CL and two lengths: whatever a proxy might have thought, one answer at most, and no second request."""
    inner = _head(lone, "Content-Type: application/json", "Content-Length: 8") + b'{"n": 9}'
    both = ("Content-Type: application/json", f"Content-Length: {len(inner) + 5}", "Transfer-Encoding: chunked")
    two = ("Content-Type: application/json", "Content-Length: 8", f"Content-Length: {8 + len(inner)}")
    odd = ("Content-Type: application/json", "Transfer-Encoding: chunked, identity")
    for lines, body in ((both, b"0\r\n\r\n" + inner), (two, b'{"n": 1}' + inner), (odd, b"0\r\n\r\n" + inner)):
        said = _raw(lone, _head(lone, *lines, "Connection: close"), body)
        assert said.count(b"HTTP/1.1 ") <= 1
        assert b'"rows":' not in said


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "get", "GENERATE"])
def test_odd_methods_reach_nothing(lone: Any, method: str) -> None:
    said = _raw(lone, _head(lone, "Connection: close", "Content-Length: 0", method=method))
    assert said == b"" or said.split(b" ")[1] in (b"400", b"404", b"405")


# keys


def _jwt(header: dict[str, Any], claims: dict[str, Any]) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims)]
    return ".".join([*parts, ""])


def test_a_token_that_nobody_signed_is_nobody(lone: Any) -> None:
    claims = {"sub": "acme", "tenant": "acme", "roles": ["administrator"], "exp": int(time.time()) + 3600}
    for header in ({"alg": "none"}, {"alg": "None", "typ": "JWT"}, {"alg": "HS256", "jwk": {"kty": "oct", "k": ""}}):
        before = len(lone.world.log())
        reply = lone.ask("POST", GENERATE, {"n": 1}, key=_jwt(header, claims))
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        (entry,) = lone.world.log()[before:]
        assert (entry["event"], entry["status"]) == ("refuse", "denied")
        assert "tenant" not in entry


def test_another_tenants_key_finds_nothing_and_is_recorded_as_his(lone: Any) -> None:
    before = len(lone.world.log())
    assert lone.rows(1, key=lone.world.stranger).status == 404
    (entry,) = lone.world.log()[before:]
    assert (entry["event"], entry["tenant"]) == ("refuse", "other")


# secrets

CONDITION = "REFERENCE: year>1987.0625"
PASSPHRASE = "gw-planted-passphrase-5521"


def test_no_secret_reaches_a_log_an_error_a_metric_an_entry_or_a_response(
    make_world: Any, start_server: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The keys' bytes, whole API keys, noise keys and condition values are planted; then every way in is used, rightly
    and wrongly, at the finest log level, and everything that came out is searched."""
    monkeypatch.setenv("GENWARD_LOG_LEVEL", "debug")
    caplog.set_level(logging.DEBUG)
    world = make_world()
    served = start_server(world)
    bad = world.key[:-1] + ("0" if world.key[-1] != "0" else "1")
    said = [_said(reply) for reply in _everything(served, bad)]
    for words in ({"where": [CONDITION]}, {"where": ["nothing>1987.0625"]}, {"n": 10**9}):
        with suppress(Exception):
            world.platform.client(world.key).generate("pool:1", **words)  # type: ignore[arg-type]
    served.ask("GET", "/metrics", key=world.auditor)
    entries = [json.dumps(entry).encode() for entry in world.log()]
    files = [path.read_bytes() for path in (world.folder / "run").glob("*.log")]
    tiles = [path.read_bytes() for path in (world.folder / "log").rglob("*") if path.is_file()]
    out = b"\n".join([*said, *entries, *files, *tiles, caplog.text.encode()])
    assert len(entries) > 10
    for name, secret in _secrets(world, bad).items():
        assert secret not in out, f"{name} came out"
    where = b"\n".join([*entries, *files, *tiles, caplog.text.encode()])  # a refusal may tell its caller what he sent
    assert b"1987.0625" not in where


def test_a_passphrase_opens_the_keys_and_comes_out_nowhere(
    start_server: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GENWARD_PASSPHRASE", PASSPHRASE)
    monkeypatch.setenv("GENWARD_LOG_LEVEL", "debug")
    caplog.set_level(logging.DEBUG)
    folder = Path(tempfile.mkdtemp(prefix="gw", dir="/tmp")) / "s"  # a socket's path has few bytes
    platform, key = Platform.init(folder, passphrase=PASSPHRASE)
    served = start_server(SimpleNamespace(folder=folder, key=key))
    replies = [served.ask("GET", path, key=k) for path in ("/v1/models", "/metrics", "/x") for k in (key, "gw_x")]
    assert {reply.status for reply in replies} == {200, 401, 404}
    served.process.terminate()
    served.process.wait(20)
    platform.close()
    out = [_said(reply) for reply in replies] + [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    shutil.rmtree(folder.parent)
    assert len(out) > 12
    assert PASSPHRASE.encode() not in b"\n".join([*out, caplog.text.encode()])


def _everything(served: Any, bad: str) -> Iterator[Any]:
    bodies: list[Any] = [{"n": 2, "where": [CONDITION]}, {"n": 2, "where": ["nothing>1987.0625"]}, {"n": -1}, b"{"]
    for key in (served.world.key, served.world.auditor, served.world.stranger, bad, "gw_nobody"):
        for body in bodies:
            yield served.ask("POST", GENERATE, body, key=key, headers=JSON)
        for path in (
            "/v1/models",
            "/v1/models/pool:1",
            "/metrics",
            "/v1/log/checkpoint",
            "/v1/receipts/none",
            "/readyz",
        ):
            yield served.ask("GET", path, key=key)
    stream = served.rows(12_000, "open:1", where=[CONDITION])
    yield stream
    yield served.ask("GET", f"/v1/receipts/{stream.headers['genward-request']}")


def _said(reply: Any) -> bytes:
    return b"\n".join([reply.body, *(f"{k}: {v}".encode() for k, v in reply.headers.items())])


def _secrets(world: Any, bad: str) -> dict[str, bytes]:
    """Everything that must stay inside, in the forms in which it could come out."""
    keys, found = world.platform.keys, {}
    for name, key in {"key": world.key, "auditor": world.auditor, "stranger": world.stranger, "mistyped": bad}.items():
        found[name] = key.split("_", 2)[2][:43].encode()
    for path in (path for path in (world.folder / "keys").iterdir() if path.is_file()):
        found[f"file {path.name}"] = max(re.split(rb"[^A-Za-z0-9+/=_-]", path.read_bytes()), key=len)
    digest = world.platform.registry.resolve("pool:1").digest
    raw = {"pepper": keys.pepper, "pool": keys.derive(f"pool/{digest}"), "walk": keys.derive(f"walk/{digest}/acme")}
    for name, value in raw.items():
        found |= {name: value, f"{name} in hex": value.hex().encode(), f"{name} in base64": base64.b64encode(value)}
    assert all(len(secret) >= 16 for secret in found.values())
    return found


def test_a_client_that_asks_for_a_switch_of_protocols_gets_none(lone: Any) -> None:
    for upgrade in ("h2c", "websocket"):
        connection = http.client.HTTPConnection(lone.host, lone.port, timeout=20)
        try:
            head = {"Upgrade": upgrade, "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
            connection.request("GET", "/v1/models", headers={**head, "Authorization": f"Bearer {lone.world.key}"})
            assert connection.getresponse().status != 101
        finally:
            connection.close()
