"""The connection below the guard. uvicorn bounds neither the size of a request's head nor the time it may take; this
does, so that floods of headers and slow or silent clients cost a few kilobytes, and those for seconds only.

What is refused here has no head that could be read: nobody knows who sent it, and the log has no entry of it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 1 << 15  # bytes of request line and headers
HEAD_SECONDS = 20.0  # in which they must have arrived
_TITLES = {408: "Request Timeout", 431: "Request Header Fields Too Large"}


class Wire(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with a bounded head."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed at most as much as a head may still have, while there is one; then the rest."""
        while self._in_head and data and not self.transport.is_closing():
            part, data = data[: self._room], data[self._room :]
            self._room -= len(part)
            super().data_received(part)
            if self._in_head and not self._room:
                self._refuse(431, f"a request's head has at most {MAX_HEAD} bytes")
                return
        if data and not self.transport.is_closing():
            super().data_received(data)
        if self._timer is None and self.cycle is not None and self.cycle.response_complete:
            self._wait()  # what still comes after a response has an end too

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_head:  # a further request on this connection
            self._expect()

    def on_headers_complete(self) -> None:
        self._arrived()
        super().on_headers_complete()

    def _expect(self) -> None:
        self._arrived()
        self._in_head, self._room = True, MAX_HEAD
        self._wait()

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._refuse, 408, "the head did not arrive in time")

    def _arrived(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, what: str) -> None:
        """Say so and close, unless a response of an earlier request is still on its way."""
        self._arrived()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_problem(status, what))
        self.transport.close()


def _problem(status: int, what: str) -> bytes:
    """A whole response (RFC 9112) that says what was wrong (RFC 9457)."""
    body = orjson.dumps({"type": "about:blank", "title": _TITLES[status].lower(), "status": status, "detail": what})
    head = [
        f"HTTP/1.1 {status} {_TITLES[status]}",
        "content-type: application/problem+json",
        f"content-length: {len(body)}",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
        "connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def install(protocols: dict[Any, str] = uvicorn.config.HTTP_PROTOCOLS) -> None:
    """Make it what uvicorn speaks in this process; BentoML, which starts uvicorn, has no setting for it."""
    protocols["auto"] = f"{__name__}:{Wire.__name__}"
