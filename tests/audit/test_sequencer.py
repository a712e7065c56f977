"""The writer: what it acknowledged is in the tree, whoever dies, and what is wrong on disk is found and named."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from genward_audit import protocol
from genward_audit.checkpoint import Checkpoint
from genward_audit.client import AuditClient, connect
from genward_audit.entries import act_entry, parse
from genward_audit.errors import AuditError, Conflict, IntegrityError, Unavailable, UsageError
from genward_audit.keyfile import create_key
from genward_audit.merkle import verify_consistency
from genward_audit.note import Signer, open_note
from genward_audit.policy import Policy
from genward_audit.proof import Proof
from genward_audit.reader import LogFolder
from genward_audit.segment import Segment, frame, read_frames, segments
from genward_audit.sequencer import Sequencer
from genward_audit.storage import LocalObjects, SqliteHead
from genward_audit.verify import verify_folder

ORIGIN = "test.example/log"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a Unix socket's has at most 107 bytes."""
    found = Path(tempfile.mkdtemp(prefix="ga", dir="/tmp"))
    create_key(found / "key.pem")
    yield found
    shutil.rmtree(found, ignore_errors=True)


@pytest.fixture
def join(folder: Path) -> Iterator[Callable[..., AuditClient]]:
    made: list[AuditClient] = []

    def joined(**options: Any) -> AuditClient:
        client = connect(folder / "log", folder / "run", folder / "key.pem", ORIGIN, **{"linger": 30, **options})
        made.append(client)
        return client

    yield joined
    for client in made:
        with suppress(AuditError, OSError):
            os.kill(client.stats()["pid"], signal.SIGTERM)
        client.close()


def _sequencer(folder: Path, **options: Any) -> Sequencer:
    return Sequencer(folder / "log", SqliteHead(folder / "head.db"), Signer(ORIGIN, KEY), **options)


def _entries(*names: object) -> list[bytes]:
    return [str(name).encode() for name in names]


def _publish(log: Sequencer) -> Checkpoint:
    snapshot = log.snapshot()
    if snapshot is not None:
        log.publish(snapshot)
    return LogFolder(log.folder).head()


def _check(folder: Path, acknowledged: dict[int, bytes], seen: list[Checkpoint]) -> Checkpoint:
    """Re-derive every invariant: entries are where they were acknowledged, checkpoints continue each other."""
    log = _sequencer(folder)
    head = _publish(log)
    log.close()
    read = LogFolder(folder / "log")
    for index, entry in acknowledged.items():
        assert read.entry(index) == entry
    for before in [one for one in seen if one.size]:
        verify_consistency(before.size, head.size, before.root, head.root, read.consistency(before.size, head.size))
    report = verify_folder(folder / "log", Policy.of(Signer(ORIGIN, KEY).verifier.vkey))
    assert report.integrity.state == "ok", report.integrity
    return head


# Through the socket


def test_an_entry_is_there_proved_and_found(join: Callable[..., AuditClient]) -> None:
    client = join()
    index = client.append(act_entry("test.one"))
    assert parse(client.entry(index))["act"] == "test.one"
    until = time.monotonic() + 10
    while (proof := client.proof(index)) is None and time.monotonic() < until:
        time.sleep(0.02)
    assert proof is not None
    Proof.parse(proof).verify(client.entry(index), [client.vkey()])


def test_several_clients_at_once_start_one_writer(folder: Path) -> None:
    pids, clients = [], []

    def start() -> None:
        client = connect(folder / "log", folder / "run", folder / "key.pem", ORIGIN, linger=30)
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


def test_a_thousand_connections_are_served(folder: Path, join: Callable[..., AuditClient]) -> None:
    _connections(folder, join, 1000)


@pytest.mark.soak
def test_ten_thousand_connections_are_served(folder: Path, join: Callable[..., AuditClient]) -> None:
    _connections(folder, join, 10_000)


def _connections(folder: Path, join: Callable[..., AuditClient], count: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, wanted), hard), hard))
    client = join()
    sockets = []
    try:
        for _ in range(count):
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[-1].connect(str(folder / "run" / "audit.sock"))
        for number, one in enumerate(sockets):
            one.sendall(protocol.pack(protocol.APPEND, number, b"%d" % number))
        for one in sockets:
            assert one.recv(64)[4] == protocol.OK
        assert client.stats()["size"] >= count
    finally:
        for one in sockets:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_writer_that_stops_in_good_order_says_so(folder: Path, join: Callable[..., AuditClient]) -> None:
    client = join()
    client.append(act_entry("test.one"))
    pid = client.stats()["pid"]
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 10
    while (folder / "run" / "audit.sock").exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.1)
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


def _kill_at_random(folder: Path, join: Callable[..., AuditClient], times: int) -> None:
    """Kill the writer under load, again and again; nothing acknowledged is lost and no checkpoint is taken back."""
    rng = random.Random(7)
    acknowledged: dict[int, bytes] = {}
    heads: list[Checkpoint] = []
    vkey = None
    for round_ in range(times):
        client = join(period=0.02, every=10)
        vkey = client.vkey()
        pid = client.stats()["pid"]
        killer = threading.Timer(rng.random() * 0.05, os.kill, (pid, signal.SIGKILL))
        killer.start()
        count = 0
        while killer.is_alive() or count == 0:
            entry = f"{round_}-{count}".encode()
            try:
                acknowledged[client.append(entry, stamp=False)] = entry
            except Unavailable:
                break
            count += 1
        killer.join()
        time.sleep(0.01)
        client.close()
        if (folder / "log" / "checkpoint").exists():
            heads.append(LogFolder(folder / "log").head())
    client = join()
    size = client.append(b"last", stamp=False) + 1
    until = time.monotonic() + 10
    while client.proof(size - 1) is None and time.monotonic() < until:
        time.sleep(0.02)
    read = LogFolder(folder / "log")
    final = read.head()
    for index, entry in acknowledged.items():
        assert read.entry(index) == entry
    for before in heads:
        if before.size:
            proof = read.consistency(before.size, final.size)
            verify_consistency(before.size, final.size, before.root, final.root, proof)
    assert vkey is not None
    assert verify_folder(folder / "log", Policy.of(vkey)).integrity.state == "ok"
    assert len(acknowledged) > times


def test_killed_fifty_times_under_load(folder: Path, join: Callable[..., AuditClient]) -> None:
    _kill_at_random(folder, join, 50)


@pytest.mark.soak
def test_killed_a_thousand_times_under_load(folder: Path, join: Callable[..., AuditClient]) -> None:
    _kill_at_random(folder, join, 1000)


# The sequencer, call by call


class _Faulty:
    """Objects and head whose n-th call fails: lost before it happened, or persisted and then failed."""

    def __init__(self, objects: LocalObjects, head: SqliteHead, at: int, persisted: bool) -> None:
        self.objects, self.head, self.at, self.persisted, self.calls = objects, head, at, persisted, 0

    def _maybe(self, act: Callable[[], None]) -> None:
        self.calls += 1
        if self.calls != self.at:
            act()
            return
        if self.persisted:
            act()
        raise Unavailable("injected: no space left on device")

    def read(self, name: str = "") -> Any:
        return self.objects.read(name) if name else self.head.read()

    def write(self, name: str, data: bytes) -> None:
        self._maybe(lambda: self.objects.write(name, data))

    def remove(self, name: str) -> None:
        self.objects.remove(name)

    def swap(self, old: bytes | None, new: bytes) -> None:
        self._maybe(lambda: self.head.swap(old, new))


@pytest.mark.parametrize("persisted", [False, True])
def test_each_storage_call_may_fail_both_ways(folder: Path, persisted: bool) -> None:
    """After any failure the writer stands up on what is on disk, loses nothing and publishes on."""
    failed = 0
    for at in range(1, 60):
        home = folder / f"{at}-{persisted}"
        home.mkdir()
        faulty = _Faulty(LocalObjects(home / "log"), SqliteHead(home / "head.db"), at, persisted)
        log = Sequencer(home / "log", faulty, Signer(ORIGIN, KEY), objects=faulty)
        acknowledged: dict[int, bytes] = {}
        seen: list[Checkpoint] = []
        for batch in range(4):
            entries = _entries(*(f"{batch}-{i}" for i in range(100)))
            first = log.commit(entries)
            acknowledged |= dict(enumerate(entries, first))
            try:
                seen.append(_publish(log))
            except Unavailable:
                failed += 1
                log.recover()
        log.close()
        assert _check(home, acknowledged, seen).size == 400
        if faulty.calls < at:
            break
    assert failed > 10


@pytest.mark.parametrize("persisted", [False, True])
@pytest.mark.parametrize("call", ["write", "sync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failing_segment_refuses_and_recovers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, persisted: bool
) -> None:
    """Full, read-only or broken: what is refused may be there or not, what was acknowledged is."""
    log = _sequencer(folder)
    assert log.commit(_entries("a", "b")) == 0
    real = getattr(Segment, call)

    def failing(*given: Any) -> Any:
        if persisted:
            real(*given)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Segment, call, staticmethod(failing))
        with pytest.raises(Unavailable):
            log.commit(_entries("c"))
        with pytest.raises(Unavailable):
            log.recover()
    log.recover()
    first = log.commit(_entries("d"))
    assert first in (2, 3)
    log.close()
    _check(folder, {0: b"a", 1: b"b", first: b"d"}, [])


def test_a_torn_write_at_every_byte_loses_no_acknowledged_entry(folder: Path) -> None:
    log = _sequencer(folder)
    log.commit(_entries("one", "two"))
    log.close()
    (path,) = segments(folder / "log" / "wal")
    whole = path.read_bytes()
    last = frame(2, _entries("three", "four"))
    for cut in range(len(last) + 1):
        home = folder / f"cut{cut}"
        shutil.copytree(folder / "log", home / "log")
        (home / "log" / "wal" / path.name).write_bytes(whole + last[:cut])
        again = _sequencer(home)
        assert again.size == (4 if cut == len(last) else 2)
        again.close()


def test_a_flipped_bit_before_the_last_frame_is_damage_and_named(folder: Path) -> None:
    log = _sequencer(folder)
    log.commit(_entries("one"))
    log.commit(_entries("two"))
    log.close()
    (path,) = segments(folder / "log" / "wal")
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=path.name):
        _sequencer(folder)


def _published(folder: Path, count: int = 700) -> None:
    log = _sequencer(folder)
    log.commit(_entries(*range(count)))
    _publish(log)
    log.close()


@pytest.mark.parametrize("name", ["tile/0/000", "tile/0/002.p/188", "tile/1/000.p/2", "tile/entries/002.p/188"])
@pytest.mark.parametrize("how", ["missing", "short", "flipped"])
def test_a_damaged_tile_is_named_at_start_or_by_the_verifier(folder: Path, name: str, how: str) -> None:
    _published(folder)
    path = folder / "log" / name
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "short":
        path.write_bytes(bytes(data[:-1]))
    else:
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    report = verify_folder(folder / "log", Policy.of(Signer(ORIGIN, KEY).verifier.vkey))
    assert report.integrity.state != "ok"
    assert name.split(".p")[0] in str(report.integrity.failures)


def test_a_checkpoint_of_a_stranger_is_refused(folder: Path) -> None:
    _published(folder)
    (folder / "log" / "checkpoint").write_bytes(b"other.example\n1\nAAAA\n\n\xe2\x80\x94 x y\n")
    with pytest.raises(IntegrityError, match="checkpoint"):
        _sequencer(folder)


def test_a_second_writer_is_refused_with_the_first_one_s_process(folder: Path) -> None:
    log = _sequencer(folder)
    with pytest.raises(Conflict, match=str(os.getpid())):
        _sequencer(folder)
    log.close()
    _sequencer(folder).close()


def test_a_rolled_back_disk_is_noticed_by_a_head_elsewhere(folder: Path) -> None:
    _published(folder, 10)
    shutil.copytree(folder / "log", folder / "old")
    _published_more(folder)
    shutil.rmtree(folder / "log")
    (folder / "old").rename(folder / "log")
    with pytest.raises(IntegrityError, match="rolled back"):
        _sequencer(folder)


def test_a_rolled_back_head_is_noticed(folder: Path) -> None:
    _published(folder, 10)
    shutil.copy(folder / "head.db", folder / "old.db")
    _published_more(folder)
    (folder / "old.db").replace(folder / "head.db")
    with pytest.raises(IntegrityError, match="head was"):
        _sequencer(folder)


def test_a_fork_is_refused(folder: Path) -> None:
    _published(folder, 10)
    (folder / "other").mkdir()
    other = Sequencer(folder / "other" / "log", SqliteHead(folder / "other" / "head.db"), Signer(ORIGIN, KEY))
    other.commit(_entries(*(f"x{i}" for i in range(10))))
    _publish(other)
    other.close()
    shutil.copy(folder / "other" / "head.db", folder / "head.db")
    with pytest.raises(Conflict, match="fork"):
        _sequencer(folder)


def _published_more(folder: Path) -> None:
    log = _sequencer(folder)
    log.commit(_entries("more"))
    _publish(log)
    log.close()


def test_the_head_swaps_only_from_what_it_holds(folder: Path) -> None:
    head = SqliteHead(folder / "h.db")
    head.swap(None, b"one")
    with pytest.raises(Conflict):
        head.swap(None, b"two")
    with pytest.raises(Conflict):
        head.swap(b"other", b"two")
    head.swap(b"one", b"two")
    assert head.read() == b"two"


def test_a_crash_between_head_and_checkpoint_is_mended_at_start(folder: Path) -> None:
    _published(folder, 10)
    old = (folder / "log" / "checkpoint").read_bytes()
    _published_more(folder)
    (folder / "log" / "checkpoint").write_bytes(old)
    _sequencer(folder).close()
    assert LogFolder(folder / "log").head().size == 11


def test_each_checkpoint_is_copied_to_the_second_folder(folder: Path) -> None:
    log = _sequencer(folder, second=LocalObjects(folder / "second"))
    log.commit(_entries("a"))
    _publish(log)
    log.close()
    assert (folder / "second" / "checkpoint").read_bytes() == (folder / "log" / "checkpoint").read_bytes()
    open_note((folder / "second" / "checkpoint").read_bytes(), [Signer(ORIGIN, KEY).verifier])


def test_times_never_fall_when_the_clock_jumps_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genward_audit.writer import Options, Writer

    async def stamped() -> list[str]:
        log = _sequencer(folder)
        (folder / "run").mkdir()
        writer = Writer(log, Options(folder / "log", folder / "run", folder / "key.pem", ORIGIN))
        clock = iter([1000.0, 1001.0, 1001.0 - 3600, 1002.0])
        monkeypatch.setattr("genward_audit.writer.time.time", lambda: next(clock))
        found = [parse(writer._stamped(act_entry("test.clock")))["t"] for _ in range(4)]
        log.close()
        return found

    times = asyncio.run(stamped())
    assert times == sorted(times)
    assert len(set(times)) == 4
