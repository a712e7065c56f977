"""A small HTTP/1.1 load client: keep-alive connections that each repeat one request, bounded by count and by time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import uvloop


@dataclass(frozen=True)
class Target:
    """A server on this machine and the request to repeat; `expect` is how every good answer begins."""

    port: int
    path: str
    body: Mapping[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self) -> bytes:
        body = json.dumps(self.body).encode()
        given = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(body))}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in {**given, **self.headers}.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Load:
    """What came back: seconds of each answer, and the whole time."""

    taken: list[float] = field(default_factory=list)
    seconds: float = 0.0
    received: int = 0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.taken) / self.seconds

    def quantile(self, share: float) -> float:
        """Milliseconds."""
        return 1000 * sorted(self.taken)[min(len(self.taken) - 1, int(share * len(self.taken)))]


class _Connection(asyncio.Protocol):
    """Repeats a request until told to stop; `done` resolves when the last answer is in."""

    def __init__(self, request: bytes, load: Load, left: list[int], until: float, done: asyncio.Future[None]) -> None:
        self._request, self._load, self._left, self._until, self._done = request, load, left, until, done
        self._head, self._want, self._tail = b"", -1, b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError("the server closed a connection"))

    def data_received(self, data: bytes) -> None:
        self._load.received += len(data)
        if self._want < 0:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._begin(head)
        if self._want > 0 or not self._chunked:
            self._want -= len(data)
            finished = self._want <= 0
        else:
            self._tail = (self._tail + data)[-7:]
            finished = self._tail == b"\r\n0\r\n\r\n"
        if finished:
            self._answered()

    def _begin(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 200"):
            self._done.set_exception(ConnectionError(head.decode(errors="replace")))
            self._transport.close()
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        self._chunked = b"content-length" not in fields
        self._want, self._tail = int(fields.get(b"content-length", 0)), b""

    def _answered(self) -> None:
        self._load.taken.append(time.perf_counter() - self._sent)
        self._head, self._want = b"", -1
        self._next()

    def _next(self) -> None:
        if self._done.done():
            return
        if self._left[0] <= 0 or time.perf_counter() > self._until:
            self._done.set_result(None)
            self._transport.close()
            return
        self._left[0] -= 1
        self._sent = time.perf_counter()
        self._transport.write(self._request)


async def drive(target: Target, connections: int, count: int, seconds: float) -> Load:
    """At most `count` requests in at most `seconds`, over so many connections at once."""
    loop, load, left = asyncio.get_running_loop(), Load(), [count]
    began = time.perf_counter()
    done = [loop.create_future() for _ in range(connections)]
    request = target.request()
    for future in done:
        make = partial(_Connection, request, load, left, began + seconds, future)
        await loop.create_connection(make, "127.0.0.1", target.port)
    await asyncio.gather(*done)
    load.seconds = time.perf_counter() - began
    return load


def run(target: Target, connections: int, count: int, seconds: float) -> Load:
    """As `drive`, from outside a loop."""
    return uvloop.run(drive(target, connections, count, seconds))


async def _beside(target: Target, other: Target, count: int, seconds: float) -> tuple[Load, Load]:
    """The first target on one connection while the second is asked again and again."""
    busy = asyncio.ensure_future(drive(other, 1, 1_000_000, seconds))
    await asyncio.sleep(0.3)
    small = await drive(target, 1, count, seconds - 0.6)
    return small, await busy


def beside(target: Target, other: Target, count: int, seconds: float) -> tuple[Load, Load]:
    """(load of the first, load of the second that ran beside it)."""
    return uvloop.run(_beside(target, other, count, seconds))
