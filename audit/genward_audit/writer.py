"""The writer: one process per log, many producers through a Unix socket.

    python -m genward_audit.writer --log DIR --run DIR --key FILE --origin NAME

Batches form while the disk is busy: a lone producer pays one fdatasync, 256 producers share one. Nothing waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genward_audit import entries as schema
from genward_audit import protocol as p
from genward_audit.errors import AuditError, Conflict, FormatError, Unavailable, UsageError
from genward_audit.index import Index, Query
from genward_audit.keyfile import keys_of, load_key
from genward_audit.note import Signer
from genward_audit.policy import Policy
from genward_audit.sequencer import Sequencer
from genward_audit.storage import LocalObjects, SqliteHead
from genward_audit.tiles import MAX_ENTRY

BATCH = 1024  # entries of one commit
IDLE_SECONDS = 0.02  # nothing came for so long: publish what there is
JUMP_SECONDS = 1.0  # by which a clock may be set back without a word
PATIENCE_SECONDS = 5.0  # for which the next writer waits until the last one has let go of the log
RETRY_SECONDS = 0.5  # between attempts to stand up again after the disk failed


@dataclass(frozen=True)
class Options:
    """How a writer runs. `period` and `every`: a checkpoint is due after so many seconds or entries."""

    log: Path
    run: Path
    key: Path
    origin: str
    head: Path | None = None
    second: Path | None = None
    policy: Path | None = None
    period: float = 1.0
    every: int = 1000
    linger: float = 0.0  # seconds without a connection after which the writer leaves; 0: never


@dataclass(slots=True)
class _Waiting:
    producer: _Producer
    number: int
    entry: bytes
    stamp: bool


class Writer:
    """Serves one sequencer. All state belongs to the event loop; disk work goes to two threads, one each."""

    def __init__(self, sequencer: Sequencer, options: Options) -> None:
        self.sequencer, self.options = sequencer, options
        self._queue: deque[_Waiting | None] = deque()
        self._wake, self._published = asyncio.Event(), asyncio.Event()
        self._disk = ThreadPoolExecutor(1, "commit")
        self._public = ThreadPoolExecutor(1, "publish")
        self._producers: set[_Producer] = set()
        self._broken: AuditError | None = None
        self._late = False  # the clock is behind the log
        self._due, self._seen, self._last_time = 0.0, time.monotonic(), 0.0
        self._index: Index | None = None  # opened, used and closed by the publishing thread
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop or left alone for too long."""
        path = self.options.run / p.SOCKET
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        mask = os.umask(0o177)
        try:
            server = await loop.create_unix_server(lambda: _Producer(self), str(path), backlog=4096)
        finally:
            os.umask(mask)
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self.stopping.set)
        self._last_time = self._newest_time()
        await self._append(schema.start_entry(self.sequencer.size, pid=os.getpid()))
        if self.sequencer.succeeded is not None:
            old, new = self.sequencer.succeeded.vkey, self.sequencer.signer.verifier.vkey
            await self._append(schema.rotate_entry(old, new))
        tasks = [asyncio.create_task(work()) for work in (self._committing, self._publishing, self._lingering)]
        for task in tasks:  # none ends by itself: better no writer than a deaf one
            task.add_done_callback(lambda _: self.stopping.set())
        await self.stopping.wait()
        server.close()
        path.unlink(missing_ok=True)  # before the lock goes: who comes now starts the next writer, and it waits
        await self._stop(*tasks)

    def _newest_time(self) -> float:
        """The time of the last entry, so that times do not fall across a restart either; 0 where it states none."""
        try:
            return schema.parse_time(schema.parse(self.sequencer.newest() or b"").get("t", ""))
        except AuditError:
            return 0.0

    async def _stop(self, committing: asyncio.Task[None], *others: asyncio.Task[None]) -> None:
        """Commit what came, and only then state the size in the last entry."""
        self.push(None)
        for task in others:
            task.cancel()
        done = await asyncio.gather(committing, *others, return_exceptions=True)
        for failure in [one for one in done if isinstance(one, Exception)]:
            self._broken = Unavailable(f"the writer failed: {failure!r}")
            print(self._broken, file=sys.stderr)
        try:
            await self._mend(patient=False)
            await self._append(schema.stop_entry(self.sequencer.size))
            await self._publish()
        except AuditError as error:
            print(f"stopped without a checkpoint: {error}", file=sys.stderr)
        if self._index is not None:
            await self._in(self._public, self._index.close)
        self._disk.shutdown()
        self._public.shutdown()
        self.sequencer.close()

    async def _append(self, entry: bytes) -> None:
        await self._in(self._disk, self.sequencer.commit, [self._stamped(entry)])
        self._wake.set()

    def _in(self, pool: ThreadPoolExecutor, act: Callable[..., Any], *given: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(pool, act, *given)

    # commit

    def push(self, waiting: _Waiting | None) -> None:
        """Queue an entry; wakes the committer. None is the last: the committer ends."""
        self._queue.append(waiting)
        self._wake.set()

    async def _committing(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                await self._commit([one for one in batch if one is not None])
                if None in batch:
                    return

    async def _commit(self, batch: list[_Waiting]) -> None:
        waiting = batch
        try:
            await self._mend()
            await self._watch_clock()
            ready = self._ready(batch)
            waiting = [one for one, _ in ready]
            if ready:
                self._acknowledge(waiting, await self._commit_now([entry for _, entry in ready]))
        except AuditError as error:
            self._fail(waiting, error)

    def _ready(self, batch: list[_Waiting]) -> list[tuple[_Waiting, bytes]]:
        """What can be committed, with its time; the others hear why not."""
        ready = []
        for one in batch:
            try:
                ready.append((one, self._stamped(one.entry) if one.stamp else one.entry))
            except AuditError as error:
                one.producer.reply(p.pack_error(one.number, error))
        return ready

    async def _commit_now(self, entries: list[bytes]) -> int:
        """In the disk's thread, while the loop gathers the next batch; a lone one is spared the way."""
        if len(entries) == 1:
            return self.sequencer.commit(entries)
        return int(await self._in(self._disk, self.sequencer.commit, entries))

    def _acknowledge(self, batch: Sequence[_Waiting], first: int) -> None:
        """One write per producer, however many of its entries were in the batch."""
        replies: dict[_Producer, list[bytes]] = {}
        for index, one in enumerate(batch, first):
            replies.setdefault(one.producer, []).append(p.pack(p.OK, one.number, index.to_bytes(8, "big")))
        for producer, frames in replies.items():
            producer.reply(b"".join(frames))
        self._published.set()

    def _fail(self, batch: Sequence[_Waiting], error: AuditError) -> None:
        """Nobody knows what is on disk: say so to everybody who waits, and stand up again before the next batch."""
        self._broken = error
        for one in batch:
            one.producer.reply(p.pack_error(one.number, error))

    async def _mend(self, patient: bool = True) -> None:
        """Stand up again after a failure, on what the disk says; soon after a failed attempt only if impatient."""
        if self._broken is None:
            return
        if patient and self._due > time.monotonic():
            raise self._broken
        self._due = time.monotonic() + RETRY_SECONDS
        await self._in(self._public, lambda: None)  # no integration is under way
        await self._in(self._disk, self.sequencer.recover)
        self._broken, self._due = None, 0.0

    async def _watch_clock(self) -> None:
        """Say in an entry when the clock was set back, once."""
        before, now = self._last_time, time.time()
        late = now < before - JUMP_SECONDS
        if late and not self._late:
            await self._append(schema.clock_entry(before, now))
        self._late = late

    def _stamped(self, entry: bytes) -> bytes:
        """The entry with its time. Times never fall: those of a clock that was set back stand still until it has caught
        up."""
        self._last_time = max(time.time(), self._last_time + 1e-6)
        return _with_time(entry, schema.format_time(self._last_time))

    # publish

    async def _publishing(self) -> None:
        while True:
            await self._published.wait()
            self._published.clear()
            begun = time.monotonic()
            while time.monotonic() - begun < self.options.period:
                size = self.sequencer.size
                await asyncio.sleep(IDLE_SECONDS)
                if size == self.sequencer.size or size - self.sequencer.published >= self.options.every:
                    break
            try:
                await self._publish()
            except AuditError as error:
                print(f"checkpoint delayed: {error}", file=sys.stderr, flush=True)
                if isinstance(error, Conflict):  # the head is another's: nothing more is acknowledged until it agrees
                    self._broken = self._broken or error
                await asyncio.sleep(RETRY_SECONDS)
                self._published.set()

    async def _publish(self) -> None:
        if self._broken is None:
            snapshot = self.sequencer.snapshot()
            if snapshot is not None:
                await self._in(self._public, self.sequencer.publish, snapshot)

    async def _lingering(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.options.linger or 1.0))
            if self._producers:
                self._seen = time.monotonic()
            elif self.options.linger and time.monotonic() - self._seen > self.options.linger:
                self.stopping.set()

    # questions

    async def answer(self, kind: int, body: bytes) -> bytes:
        """The body of a reply to a question."""
        if kind == p.ENTRY:
            return await self._in(self._public, self._entry, int.from_bytes(body, "big"))  # type: ignore[no-any-return]
        if kind == p.PROOF:
            index = int.from_bytes(body, "big")
            if index >= self.sequencer.published:
                return b""
            return await self._in(self._public, self.sequencer.log.proof, index) or b""
        if kind == p.FIND:
            found = await self._in(self._public, self._find, body.decode())
            return json.dumps(found).encode()
        if kind == p.CHECKPOINT:
            return await self._in(self._public, self.sequencer.log.checkpoint_note)  # type: ignore[no-any-return]
        if kind == p.VKEY:
            return self.sequencer.signer.verifier.vkey.encode()
        if kind in (p.PING, p.STATS):
            facts = {"size": self.sequencer.size, "published": self.sequencer.published, "pid": os.getpid()}
            return json.dumps(facts | {"broken": str(self._broken or "")}).encode()
        raise UsageError(f"no request of kind {kind}")

    def _entry(self, index: int) -> bytes:
        if index >= self.sequencer.published:
            return self.sequencer.pending(index)
        return self.sequencer.log.entry(index)

    def _find(self, request: str) -> list[int]:
        """Indices of a request's entries: from the index as far as tiles go, behind that from memory."""
        tail = [index for index, entry in self.sequencer.tail() if _request(entry) == request]
        if not self.sequencer.published:
            return tail
        if self._index is None:
            self._index = Index(self.options.run / "audit-index.db")
        self._index.update(self.sequencer.log)
        return sorted({*self._index.search(Query(request=request)), *tail})


class _Producer(asyncio.Protocol):
    """One connection."""

    def __init__(self, writer: Writer) -> None:
        self._writer, self._parser = writer, p.Parser()
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._writer._producers.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._writer._producers.discard(self)
        self._transport = None

    def pause_writing(self) -> None:
        """It does not read its replies: then it is not read either."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        try:
            for kind, number, body in self._parser.feed(data):
                self._take(kind, number, body)
        except FormatError:
            if self._transport is not None:
                self._transport.abort()

    def _take(self, kind: int, number: int, body: bytes) -> None:
        if kind not in (p.APPEND, p.STAMPED):
            task = asyncio.get_running_loop().create_task(self._ask(kind, number, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif len(body) > MAX_ENTRY:
            error = UsageError(
                f"an entry has at most {MAX_ENTRY} bytes, not {len(body)}", remedy="log a digest instead"
            )
            self.reply(p.pack_error(number, error))
        else:
            self._writer.push(_Waiting(self, number, body, kind == p.STAMPED))

    async def _ask(self, kind: int, number: int, body: bytes) -> None:
        try:
            self.reply(p.pack(p.OK, number, await self._writer.answer(kind, body)))
        except Exception as error:  # whatever it was, the producer hears of it
            self.reply(p.pack_error(number, error))

    def reply(self, data: bytes) -> None:
        """Send, unless the producer has gone."""
        if self._transport is not None:
            self._transport.write(data)


_END, _TENANT = b',"v":1}', b',"tenant":"'


def _with_time(entry: bytes, text: str) -> bytes:
    """A canonical entry with its time put where sorting puts it: before `tenant` and `v`, which come last.

    The producer's entry is trusted to be canonical as far as its end shows; anything else goes the slow way.
    """
    head = entry[: -len(_END)]
    if not entry.endswith(_END) or b'"t":' in head or len(entry) > schema.MAX_BYTES - 40:
        return schema.stamp(entry, schema.parse_time(text))
    at = head.rfind(_TENANT)
    tail = head[at + len(_TENANT) : -1] if at >= 0 else b'"'
    if at < 0 and b'"tenant"' not in head:
        return b"".join((head, b',"t":"', text.encode(), b'"', _END))
    if b'"' in tail or b"\\" in tail or not head.endswith(b'"'):
        return schema.stamp(entry, schema.parse_time(text))
    return b"".join((head[:at], b',"t":"', text.encode(), b'"', head[at:], _END))


def _request(entry: bytes) -> str | None:
    try:
        return schema.parse(entry).get("request")
    except FormatError:
        return None


def open_sequencer(options: Options) -> Sequencer:
    """The sequencer of a writer's options."""
    passphrase = os.environ.pop("GENWARD_PASSPHRASE", None)
    word = passphrase.encode() if passphrase else None
    signer, *also = (Signer(options.origin, load_key(path, word)) for path in keys_of(options.key))
    head = SqliteHead(options.head or options.log.with_name(f"{options.log.name}-head.db"))
    second = None if options.second is None else LocalObjects(options.second)
    policy = None if options.policy is None else Policy.parse(options.policy.read_bytes())
    return Sequencer(options.log, head, signer, second=second, policy=policy, also=also, patience=PATIENCE_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a writer until it is stopped; errors go to standard error in one line."""
    parser = argparse.ArgumentParser(description="The one writer of a transparency log.")
    for name in ("log", "run", "key"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--origin", required=True)
    for name in ("head", "second", "policy"):
        parser.add_argument(f"--{name}", type=Path)
    for name, kind, default in (("period", float, 1.0), ("every", int, 1000), ("linger", float, 0.0)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    options = Options(**vars(parser.parse_args(arguments)))
    try:
        options.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        sequencer = open_sequencer(options)
    except (AuditError, OSError) as error:
        print(f"genward-audit writer: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    _raise_limit()
    try:
        asyncio.run(_serve(sequencer, options))
    except (AuditError, OSError) as error:
        print(f"genward-audit writer: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    return 0


def _raise_limit() -> None:
    """As many connections as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(sequencer: Sequencer, options: Options) -> None:
    """Make the writer inside its loop and run it."""
    await Writer(sequencer, options).run()


if __name__ == "__main__":
    sys.exit(main())
