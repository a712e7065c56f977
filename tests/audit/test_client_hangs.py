"""A writer that hangs ends as an error within a stated time, and is spoken to again when it speaks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from genward_audit import client as module
from genward_audit import protocol as p
from genward_audit.client import AuditClient
from genward_audit.errors import Unavailable


class Hanging:
    """A writer on a socket that answers when it is told to."""

    def __init__(self) -> None:
        self.awake = asyncio.Event()
        self.seen: list[bytes] = []
        self.open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = p.Parser()
        self.open.append(writer)
        while data := await reader.read(1 << 16):
            for kind, number, body in parser.feed(data):
                await self.awake.wait()
                if kind == p.STAMPED:
                    self.seen.append(body)
                writer.write(p.pack(p.OK, number, len(self.seen).to_bytes(8, "big")))


async def _with_writer(run: Path, work: Any) -> None:
    hanging = Hanging()
    server = await asyncio.start_unix_server(hanging.serve, str(run / p.SOCKET))
    client = AuditClient(run, [])
    try:
        await work(hanging, client)
    finally:
        await client.detach()
        for writer in hanging.open:
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()


def test_an_append_to_a_writer_that_hangs_ends_and_the_next_end_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "APPEND_SECONDS", 0.3)

    async def work(hanging: Hanging, client: AuditClient) -> None:
        one, two = asyncio.create_task(client.append_async(b"one")), asyncio.create_task(client.append_async(b"two"))
        await asyncio.sleep(0.1)
        late = asyncio.create_task(client.append_async(b"late"))  # waits behind the first two, and is not sent
        with pytest.raises(Unavailable, match="may or may not be kept"):
            await one
        with pytest.raises(Unavailable, match="may or may not be kept"):
            await two
        begun = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match="hangs"):
            await client.append_async(b"three")
        assert asyncio.get_running_loop().time() - begun < 0.25  # it was not waited for
        with pytest.raises(Unavailable, match="was not sent"):
            await late
        hanging.awake.set()
        await asyncio.sleep(0.1)
        assert await client.append_async(b"four") == 3
        assert hanging.seen == [b"one", b"two", b"four"]

    asyncio.run(_with_writer(tmp_path, work))


def test_a_caller_that_leaves_takes_nothing_with_it(tmp_path: Path) -> None:
    async def work(hanging: Hanging, client: AuditClient) -> None:
        leaving = asyncio.create_task(client.append_async(b"one"))
        await asyncio.sleep(0.05)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        hanging.awake.set()
        assert await client.append_async(b"two") == 2

    asyncio.run(_with_writer(tmp_path, work))
