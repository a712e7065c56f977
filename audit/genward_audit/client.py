"""Producers' side of the writer: join the one that runs, or start it, and append.

`append` and `append_async` return an entry's index, and only after the entry is durable. When a connection breaks, the
fate of what was on its way is unknown: `Unavailable`, and the caller refuses whatever it wanted recorded.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genward_audit import protocol as p
from genward_audit.errors import Unavailable

START_SECONDS = 20.0  # a writer has so long to answer its first ping
REPLY_SECONDS = 30.0
APPEND_SECONDS = 10.0  # on an event loop: a writer that hangs is no answer either


def connect(log_dir: Path, run_dir: Path, key_file: Path, origin: str, **options: Any) -> AuditClient:
    """A client of the log's writer, which is started when none answers.

    Args:
        log_dir: the log's public folder.
        run_dir: where the socket is (0600) and the start lock.
        key_file: Ed25519 key in PEM; only the writer reads it.
        origin: the log's name.
        options: of the writer: head, second, policy, period, every, linger.

    Raises:
        Unavailable: no writer can be started, with the reason it gave.
    """
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    given = [f"--log={log_dir}", f"--run={run_dir}", f"--key={key_file}", f"--origin={origin}", *words]
    client = AuditClient(run_dir, given)
    client.start()
    return client


class AuditClient:
    """A client. Threads have a connection each; an event loop has one for all its tasks."""

    def __init__(self, run_dir: Path, writer_arguments: Sequence[str]) -> None:
        self._run, self._arguments = run_dir, list(writer_arguments)
        self._local = threading.local()
        self._pipes: dict[asyncio.AbstractEventLoop, _Pipe] = {}
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}

    # writing

    def append(self, entry: bytes, *, stamp: bool = True) -> int:
        """Append and wait; with `stamp` the writer puts the time into a v1 entry."""
        return int.from_bytes(self._ask(p.STAMPED if stamp else p.APPEND, entry), "big")

    async def append_async(self, entry: bytes, *, stamp: bool = True) -> int:
        """As `append`, on the running event loop; many may be on their way at once.

        Raises Unavailable after APPEND_SECONDS without a word from the writer, and from then on at once until it
        speaks again: what was sent may or may not be kept.
        """
        pipe = self._pipes.get(asyncio.get_running_loop()) or await self._pipe()
        return int.from_bytes(await pipe.ask(p.STAMPED if stamp else p.APPEND, entry), "big")

    # reading

    def entry(self, index: int) -> bytes:
        """An entry's bytes; NotFound."""
        return self._ask(p.ENTRY, index.to_bytes(8, "big"))

    def proof(self, index: int) -> bytes | None:
        """The `.tlog-proof` of an entry; None until a checkpoint covers it."""
        return self._ask(p.PROOF, index.to_bytes(8, "big")) or None

    def find(self, request: str) -> list[int]:
        """Indices of a request's entries, oldest first."""
        found: list[int] = json.loads(self._ask(p.FIND, request.encode()))
        return found

    def checkpoint(self) -> bytes:
        """The last signed checkpoint; NotFound before the first."""
        return self._ask(p.CHECKPOINT)

    def vkey(self) -> str:
        """The log's verifier key."""
        return self._ask(p.VKEY).decode()

    def stats(self) -> dict[str, Any]:
        """Size, published size, process id, and what is broken."""
        found: dict[str, Any] = json.loads(self._ask(p.STATS))
        return found

    async def detach(self) -> None:
        """Close the running event loop's connection and wait until it is closed."""
        pipe = self._pipes.pop(asyncio.get_running_loop(), None)
        if pipe is not None:
            await pipe.closed()

    def close(self) -> None:
        """Let go of this thread's connection and of those of event loops."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None
        for loop, pipe in list(self._pipes.items()):
            pipe.close()
            self._pipes.pop(loop, None)

    # the writer's process

    def start(self) -> None:
        """Make sure a writer answers; one client starts it, the others wait."""
        if self._answers():
            return
        self._run.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._run / "audit.start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._answers():
                self._spawn()

    def _answers(self) -> bool:
        try:
            with _Connection(self._run / p.SOCKET) as connection:
                connection.ask(p.PING)
            return True
        except Unavailable:
            return False

    def _spawn(self) -> None:
        log = self._run / "audit-writer.log"
        with log.open("ab") as errors:
            begin = errors.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "genward_audit.writer", *self._arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and process.poll() is None:
            if self._answers():
                threading.Thread(target=process.wait, daemon=True).start()  # leave no zombie
                return
            time.sleep(0.02)
        process.kill()
        process.wait()
        said = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
        raise Unavailable(f"the log's writer did not start: {said[-1] if said else 'no word'}", where=str(self._run))

    # connections

    def _ask(self, kind: int, body: bytes = b"") -> bytes:
        connection = getattr(self._local, "connection", None)
        if connection is None or connection.owner != os.getpid():
            connection = self._local.connection = self._connection()
        try:
            found: bytes = connection.ask(kind, body)
            return found
        except Unavailable:
            if connection.broken:
                self._local.connection = None
            raise

    def _connection(self) -> _Connection:
        try:
            return _Connection(self._run / p.SOCKET)
        except Unavailable:
            self.start()
            return _Connection(self._run / p.SOCKET)

    async def _pipe(self) -> _Pipe:
        """The running loop's connection; tasks that ask at once share one."""
        loop = asyncio.get_running_loop()
        for gone in [other for other in (*self._pipes, *self._opening) if other.is_closed()]:
            self._pipes.pop(gone, None)
            self._opening.pop(gone, None)
        async with self._opening.setdefault(loop, asyncio.Lock()):
            if loop not in self._pipes:
                self._pipes[loop] = await self._connected(loop)
            return self._pipes[loop]

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> _Pipe:
        path = str(self._run / p.SOCKET)
        try:
            _, pipe = await loop.create_unix_connection(lambda: _Pipe(self._forget), path)
        except OSError:
            await asyncio.to_thread(self.start)
            try:
                _, pipe = await loop.create_unix_connection(lambda: _Pipe(self._forget), path)
            except OSError as error:
                raise Unavailable(f"the log's writer does not answer: {error.strerror}", where=path) from None
        return pipe

    def _forget(self, pipe: _Pipe) -> None:
        for loop in [loop for loop, other in self._pipes.items() if other is pipe]:
            del self._pipes[loop]


class _Connection:
    """A blocking connection, for one thread."""

    def __init__(self, path: Path) -> None:
        self.owner, self.broken = os.getpid(), False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(REPLY_SECONDS)
        self._parser, self._number = p.Parser(), 0
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"the log's writer does not answer: {error.strerror}", where=str(path)) from None

    def ask(self, kind: int, body: bytes = b"") -> bytes:
        self._number += 1
        try:
            self._socket.sendall(p.pack(kind, self._number, body))
            while True:
                data = self._socket.recv(1 << 16)
                if not data:
                    raise ConnectionError("the writer has gone")
                for status, number, reply in self._parser.feed(data):
                    if number == self._number:
                        return _result(status, reply)
        except OSError as error:
            self.close()
            self.broken = True
            raise Unavailable(f"the log's writer broke off, what was sent may or may not be kept: {error}") from None

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        self._socket.close()  # a thread that ends takes its connection with it

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Pipe(asyncio.Protocol):
    """A connection of an event loop. While entries are on their way, later ones wait and then leave in one write: the
    writer could not begin a new group before it has answered the last one anyway (as Nagle, RFC 896)."""

    def __init__(self, forget: Any) -> None:
        self._forget, self._parser = forget, p.Parser()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[float, asyncio.Future[bytes]]] = {}  # since when, oldest first
        self._watching = False
        self._out: dict[int, bytes] = {}
        self._hangs = False
        self._sent = 0  # how many frames were not answered yet
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._forget(self)
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable("the log's writer broke off, what was sent may or may not be kept"))
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        self._hangs = False
        for status, number, reply in self._parser.feed(data):
            self._sent -= 1
            if (found := self._waiting.pop(number, None)) is not None:
                self._answered(found[1], status, reply)
        if self._out and not self._sent:
            self._flush()

    @staticmethod
    def _answered(future: asyncio.Future[bytes], status: int, reply: bytes) -> None:
        if future.done():  # whoever asked has gone
            return
        if status == p.OK:
            future.set_result(reply)
        else:
            future.set_exception(p.read_error(reply))

    async def ask(self, kind: int, body: bytes) -> bytes:
        if self._transport is None:
            raise Unavailable("the log's writer has gone")
        if self._hangs:
            raise Unavailable("the log's writer hangs", remedy="`genward serve` starts another when it has ended")
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        future: asyncio.Future[bytes] = loop.create_future()
        self._waiting[number] = loop.time(), future
        if not self._out and not self._sent:
            loop.call_soon(self._flush)
        self._out[number] = p.pack(kind, number, body)
        if not self._watching:
            self._watch(loop)
        return await future

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail what waits too long; look again when the oldest of the rest will have. One timer for all of them."""
        late = loop.time() - APPEND_SECONDS
        for number in [number for number, (since, _) in self._waiting.items() if since <= late]:
            self._fail(number, self._waiting.pop(number)[1])
        oldest = next(iter(self._waiting.values()), None)
        self._watching = oldest is not None
        if oldest is not None:
            loop.call_at(oldest[0] + APPEND_SECONDS, self._watch, loop)

    def _fail(self, number: int, future: asyncio.Future[bytes]) -> None:
        self._hangs = True
        kept = "was not sent" if self._out.pop(number, None) else "may or may not be kept"
        if not future.done():
            said = f"the log's writer said nothing for {APPEND_SECONDS:g} s, the entry {kept}"
            future.set_exception(Unavailable(said))

    def _flush(self) -> None:
        self._sent += len(self._out)
        data, self._out = b"".join(self._out.values()), {}
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def closed(self) -> None:
        """Close, and come back when the connection is gone."""
        self.close()
        while self._transport is not None:
            await asyncio.sleep(0)


def _result(status: int, reply: bytes) -> bytes:
    if status == p.OK:
        return reply
    raise p.read_error(reply)
