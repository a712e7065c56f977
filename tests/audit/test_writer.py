"""The writer through its socket: what it acknowledged is in the tree, whoever dies; what it cannot keep it refuses."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from genward_audit import protocol
from genward_audit.client import AuditClient, connect
from genward_audit.entries import act_entry, parse
from genward_audit.errors import Unavailable, UsageError
from genward_audit.policy import Policy
from genward_audit.proof import Proof
from genward_audit.reader import LogFolder
from genward_audit.segment import read_frames, segments
from genward_audit.verify import verify_folder


def test_an_entry_is_there_proved_and_found(join: Callable[..., AuditClient]) -> None:
    client = join()
    index = client.append(act_entry("test.one"))
    assert parse(client.entry(index))["act"] == "test.one"
    until = time.monotonic() + 10
    while (proof := client.proof(index)) is None and time.monotonic() < until:
        time.sleep(0.02)
    assert proof is not None
    Proof.parse(proof).verify(client.entry(index), [client.vkey()])


def test_a_thread_that_asks_again_and_again_keeps_no_answer(join: Callable[..., AuditClient]) -> None:
    client = join()
    for number in range(50):
        client.append(b"entry %d" % number, stamp=False)
        assert not client._local.connection._parser._buffer


def test_several_clients_at_once_start_one_writer(folder: Path) -> None:
    pids, clients = [], []

    def start() -> None:
        client = connect(folder / "log", folder / "run", folder / "key.pem", "test.example/log", linger=30)
        clients.append(client)
        pids.append(client.stats()["pid"])
        client.close()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 6
    assert len(set(pids)) == 1
    os.kill(pids[0], signal.SIGTERM)


def test_256_producers_share_commits(join: Callable[..., AuditClient]) -> None:
    client = join()

    async def many() -> list[int]:
        async def one(k: int) -> int:
            return await client.append_async(b"%d" % k, stamp=False)

        try:
            return await asyncio.gather(*(one(k) for k in range(256)))
        finally:
            await client.detach()

    indices = asyncio.run(many())
    assert len(set(indices)) == 256
    assert {client.entry(index) for index in indices} == {b"%d" % k for k in range(256)}
    frames = [found for path in _wal(client) for found in read_frames(path.read_bytes(), str(path))[0]]
    assert len(frames) < 128, "each entry had a commit of its own"


def _wal(client: AuditClient) -> list[Path]:
    return segments(Path(client._arguments[0].removeprefix("--log=")) / "wal")


def test_the_largest_entry_fits_and_a_larger_one_is_refused_to_its_producer_only(
    join: Callable[..., AuditClient],
) -> None:
    client = join()
    index = client.append(b"x" * 65_535, stamp=False)
    with pytest.raises(UsageError):
        client.append(b"x" * 65_536, stamp=False)
    assert client.append(b"y", stamp=False) == index + 1
    assert len(client.entry(index)) == 65_535


def test_a_producer_that_dies_half_way_hurts_nobody(folder: Path, join: Callable[..., AuditClient]) -> None:
    client = join()
    whole = protocol.pack(protocol.APPEND, 1, b"half")
    for cut in range(1, len(whole)):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(folder / "run" / "audit.sock"))
            raw.sendall(whole[:cut])
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(folder / "run" / "audit.sock"))
        raw.sendall(b"\xff" * 64)
        assert raw.recv(1) == b""
    assert parse(client.entry(client.append(act_entry("test.after"))))["act"] == "test.after"


def test_ten_thousand_connections_are_served(folder: Path, join: Callable[..., AuditClient]) -> None:
    """The writer takes as many as the system allows, whatever the limit its starter had."""
    client, count = join(), 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, count + 200), hard), hard))
    sockets = []
    try:
        for _ in range(count):
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[-1].connect(str(folder / "run" / "audit.sock"))
        for number, one in enumerate(sockets):
            one.sendall(protocol.pack(protocol.APPEND, number, b"%d" % number))
        assert {_index(one.recv(64)) for one in sockets} == set(range(1, count + 1))
        assert client.stats()["size"] == count + 1
    finally:
        for one in sockets:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _index(reply: bytes) -> int:
    assert reply[4] == protocol.OK
    return int.from_bytes(reply[-8:], "big")


def test_a_writer_that_stops_in_good_order_says_so(folder: Path, join: Callable[..., AuditClient]) -> None:
    client = join()
    client.append(act_entry("test.one"))
    pid = client.stats()["pid"]
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 10
    while (folder / "run" / "audit.sock").exists() and time.monotonic() < until:
        time.sleep(0.02)
    _stopped(folder)
    read = LogFolder(folder / "log")
    acts = [parse(entry)["act"] for _, entry in read.entries()]
    assert acts == ["log.start", "test.one", "log.stop"]


def test_a_writer_nobody_uses_leaves_and_is_started_again(folder: Path, join: Callable[..., AuditClient]) -> None:
    client = join(linger=0.5)
    client.append(act_entry("test.one"))
    first = client.stats()["pid"]
    client.close()
    until = time.monotonic() + 10
    while (folder / "run" / "audit.sock").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not (folder / "run" / "audit.sock").exists()
    assert client.append(act_entry("test.two")) > 1
    assert client.stats()["pid"] != first


def test_a_key_that_others_may_read_is_refused(folder: Path, join: Callable[..., AuditClient]) -> None:
    (folder / "key.pem").chmod(0o644)
    with pytest.raises(Unavailable, match="chmod 600"):
        join()


def test_a_writer_stopped_under_load_states_its_size(folder: Path, join: Callable[..., AuditClient]) -> None:
    """Stopped in the midst of commits, again and again: the entries say that nothing is missing."""
    vkey = ""
    for _ in range(4):
        client = join(period=0.05)
        vkey, pid = client.vkey(), client.stats()["pid"]
        threads = [threading.Thread(target=_append_until_refused, args=(client,)) for _ in range(4)]
        for one in threads:
            one.start()
        time.sleep(0.1)
        os.kill(pid, signal.SIGTERM)
        for one in threads:
            one.join()
    _stopped(folder)
    report = verify_folder(folder / "log", Policy.of(vkey))
    assert (report.integrity.state, report.completeness.state) == ("ok", "ok"), report.to_json()
    acts = [parse(entry)["act"] for _, entry in LogFolder(folder / "log").entries()]
    assert acts.count("log.start") == acts.count("log.stop") >= 4
    assert acts.count("test.load") > 40


def _append_until_refused(client: AuditClient) -> None:
    """A new writer is started where the old one has gone; then this one's work is done."""
    try:
        pid = client.stats()["pid"]
        while client.stats()["pid"] == pid:
            client.append(act_entry("test.load"))
    except Unavailable:
        pass
    finally:
        client.close()


def _stopped(folder: Path) -> None:
    """Stop the writer that runs, if one does, and wait until it has let go of the log."""
    path = folder / "log/wal/writer.lock"
    pid = int(path.read_text())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < until:
        time.sleep(0.02)


def test_a_producer_that_reads_no_replies_stops_nobody_else(folder: Path, join: Callable[..., AuditClient]) -> None:
    client = join()
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(folder / "run" / "audit.sock"))
        raw.setblocking(False)
        frames = protocol.pack(protocol.APPEND, 1, b"x") * 100_000
        with suppress(BlockingIOError):
            for _ in range(100):
                frames = frames[raw.send(frames) :]
        assert client.append(b"y", stamp=False) >= 0
