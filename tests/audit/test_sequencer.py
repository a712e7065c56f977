"""The sequencer, call by call: any storage call may fail, and what is wrong on disk is refused at start and named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from genward_audit.cosignature import Cosigner
from genward_audit.errors import Conflict, IntegrityError, NotFound, PolicyUnmet, Unavailable, UsageError
from genward_audit.note import Signer, open_note
from genward_audit.policy import Policy
from genward_audit.reader import LogFolder
from genward_audit.segment import segments
from genward_audit.sequencer import Sequencer
from genward_audit.storage import LocalObjects, SqliteHead
from genward_audit.verify import verify_folder
from genward_audit.witness import Witness, serve


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
        self._maybe(lambda: self.objects.remove(name))

    def swap(self, old: bytes | None, new: bytes) -> None:
        self._maybe(lambda: self.head.swap(old, new))


@pytest.mark.parametrize("persisted", [False, True])
@pytest.mark.parametrize("then", ["recover", "again"])
def test_each_storage_call_may_fail_both_ways(folder: Path, logs: Any, persisted: bool, then: str) -> None:
    """After any failure the writer stands up on what is on disk, or just tries again; it loses nothing either way."""
    failed, at = 0, 0
    while True:
        at += 1
        home = folder / str(at)
        faulty = _Faulty(LocalObjects(home / "log"), SqliteHead(home / "head.db"), at, persisted)
        log = Sequencer(home / "log", faulty, logs.signer, objects=faulty)
        acknowledged: dict[int, bytes] = {}
        seen = []
        for batch in range(4):
            entries = [b"%d-%d" % (batch, i) for i in range(100)]
            acknowledged |= dict(enumerate(entries, log.commit(entries)))
            try:
                seen.append(logs.publish(log))
            except Unavailable:
                failed += 1
                if then == "recover":
                    log.recover()
                seen.append(logs.publish(log))
            assert seen[-1].size == log.size == len(acknowledged)
        log.close()
        assert logs.recheck(home, acknowledged, seen).size == 400
        if faulty.calls < at:
            break
    assert failed == at - 1 > 20


class _Memory:
    """Objects and head that lie nowhere near the folder: what object storage and a database will be."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.value: bytes | None = None

    def read(self, name: str = "") -> Any:
        if not name:
            return self.value
        if name not in self.files:
            raise NotFound("no such object", where=name)
        return self.files[name]

    def write(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def remove(self, name: str) -> None:
        self.files = {key: data for key, data in self.files.items() if key != name and not key.startswith(f"{name}/")}

    def swap(self, old: bytes | None, new: bytes) -> None:
        if self.value != old:
            raise Conflict("the head has moved")
        self.value = new


def test_a_log_may_lie_elsewhere_behind_the_two_interfaces(folder: Path, logs: Any) -> None:
    memory = _Memory()
    for count in (100, 200, 300):
        log = Sequencer(folder / "log", memory, logs.signer, objects=memory)
        log.commit([b"%d" % i for i in range(count)])
        assert logs.publish(log).size == log.size
        log.close()
    assert [path.name for path in (folder / "log").iterdir()] == ["wal"]
    assert "tile/0/000" in memory.files
    assert not [name for name in memory.files if name.startswith("tile/0/000.p/")], "partial tiles of a full one"
    for name, data in memory.files.items():
        LocalObjects(folder / "copy" / "log").write(name, data)
    logs.derive(folder / "copy", {599: b"299"}, [])


@pytest.mark.parametrize("name", ["tile/0/000", "tile/0/002.p/188", "tile/1/000.p/2", "tile/entries/002.p/188"])
@pytest.mark.parametrize("how", ["missing", "short", "flipped"])
def test_a_damaged_tile_is_named_by_the_verifier_and_at_start(folder: Path, logs: Any, name: str, how: str) -> None:
    """A writer needs the right edge alone, so it finds what is wrong there; the rest is the verifier's to find."""
    logs.write(folder, *range(700))
    path = folder / "log" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data[:-1] if how == "short" else data))
    if how == "missing":
        path.unlink()
    report = verify_folder(folder / "log", Policy.of(logs.vkey))
    assert [one.split(": ")[0] for one in report.integrity.failures] == [name]
    if name != "tile/0/000":
        with pytest.raises(IntegrityError, match=f"{name.split('.')[0]}|the tiles do not lead to the head's root"):
            logs.open(folder)


def test_a_checkpoint_of_a_stranger_is_refused(folder: Path, logs: Any) -> None:
    logs.write(folder, *range(700))
    (folder / "log" / "checkpoint").write_bytes(b"other.example\n1\nAAAA\n\n\xe2\x80\x94 x y\n")
    with pytest.raises(IntegrityError, match="checkpoint"):
        logs.open(folder)


def test_a_second_writer_is_refused_with_the_first_one_s_process(folder: Path, logs: Any) -> None:
    log = logs.open(folder)
    with pytest.raises(Conflict, match=str(os.getpid())):
        logs.open(folder)
    log.close()
    logs.open(folder).close()


@contextmanager
def _rolled_back(folder: Path, *names: str) -> Iterator[None]:
    """What is done to the log meanwhile, a disk that holds `names` forgets."""
    for name in names:
        path = folder / name
        shutil.copytree(path, folder / f"{name}.old") if path.is_dir() else shutil.copy(path, folder / f"{name}.old")
    yield
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / f"{name}.old").rename(path)


def test_a_rolled_back_disk_is_noticed_by_a_head_elsewhere(folder: Path, logs: Any) -> None:
    logs.write(folder, *range(10))
    with _rolled_back(folder, "log"):
        logs.write(folder, "more")
    with pytest.raises(IntegrityError, match="rolled back"):
        logs.open(folder)


def test_a_rolled_back_head_is_noticed(folder: Path, logs: Any) -> None:
    logs.write(folder, *range(10))
    with _rolled_back(folder, "head.db"):
        logs.write(folder, "more")
    with pytest.raises(IntegrityError, match="head was"):
        logs.open(folder)


def test_a_disk_rolled_back_with_its_head_is_noticed_by_the_second_folder(folder: Path, logs: Any) -> None:
    second = LocalObjects(folder / "second")
    logs.write(folder, *range(10), second=second)
    with _rolled_back(folder, "log", "head.db"):
        logs.write(folder, "more", second=second)
    logs.open(folder).close()  # nobody who was rolled back with it can tell
    with pytest.raises(IntegrityError, match=r"second folder holds a checkpoint of size 11.*rolled back"):
        logs.open(folder, second=second)
    logs.write(folder, "other", "history", second=None)
    with pytest.raises(Conflict, match=r"second folder.*fork"):
        logs.open(folder, second=second)


@contextmanager
def _witnessed(folder: Path, signer: Signer) -> Iterator[Policy]:
    cosigner = Cosigner("w.example", Ed25519PrivateKey.from_private_bytes(b"\x03" * 32))
    witness = Witness(folder / "witness.db", cosigner, [signer.verifier])
    with serve(witness) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        log, url = f"log {signer.verifier.vkey}", f"http://127.0.0.1:{server.server_address[1]}"
        yield Policy.parse(f"{log}\nwitness w {cosigner.verifier.vkey} {url}\nquorum w\n".encode())
        server.shutdown()
        thread.join()
    witness.close()


def test_a_disk_rolled_back_with_its_head_is_noticed_by_a_witness(folder: Path, logs: Any) -> None:
    with _witnessed(folder, logs.signer) as policy:
        head = logs.write(folder, *range(10), policy=policy)
        assert policy.open((folder / "log/checkpoint").read_bytes()).checkpoint == head
        with _rolled_back(folder, "log", "head.db"):
            logs.write(folder, "more", policy=policy)
        with pytest.raises(IntegrityError, match=r"witness w holds a checkpoint of size 11.*rolled back"):
            logs.open(folder, policy=policy)
        logs.write(folder, "other")
        with pytest.raises(Conflict, match=r"witness w holds another history"):
            logs.open(folder, policy=policy)
        shutil.rmtree(folder / "log")
        (folder / "head.db").unlink()
        with pytest.raises(IntegrityError, match="rolled back"):
            logs.open(folder, policy=policy)


def test_a_crash_after_the_cosignature_is_no_rollback(folder: Path, logs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with _witnessed(folder, logs.signer) as policy:
        log = logs.open(folder, policy=policy)
        log.commit([b"one"])
        with monkeypatch.context() as patch, pytest.raises(Unavailable):
            patch.setattr(log, "_swap", _unavailable)
            logs.publish(log)
        log.close()
        again = logs.open(folder, policy=policy)
        assert logs.publish(again).size == 1
        again.close()


def _unavailable(*_: object) -> None:
    raise Unavailable("injected")


def test_a_silent_witness_keeps_nobody_from_starting(folder: Path, logs: Any) -> None:
    with _witnessed(folder, logs.signer) as policy:
        logs.write(folder, "one", policy=policy)
    log = logs.open(folder, policy=policy)
    log.commit([b"two"])
    with pytest.raises(PolicyUnmet, match="no answer"):
        logs.publish(log)
    log.close()


def test_a_policy_for_another_key_is_refused_at_start(folder: Path, logs: Any) -> None:
    other = Signer("test.example/log", Ed25519PrivateKey.from_private_bytes(b"\x08" * 32))
    with pytest.raises(UsageError, match="does not name this log's key"):
        logs.open(folder, policy=Policy.of(other.verifier.vkey))


def test_a_fork_is_refused(folder: Path, logs: Any) -> None:
    logs.write(folder, *range(10))
    logs.write(folder / "other", *(f"x{i}" for i in range(10)))
    shutil.copy(folder / "other" / "head.db", folder / "head.db")
    with pytest.raises(Conflict, match="fork"):
        logs.open(folder)


def test_who_cannot_swap_the_head_publishes_nothing(folder: Path, logs: Any) -> None:
    logs.write(folder, *range(10))
    log = logs.open(folder)
    log.commit([b"ours"])
    shown = (folder / "log/checkpoint").read_bytes()
    log.head.swap(log.head.read(), b"another writer's")
    with pytest.raises(Conflict, match="moved the head"):
        logs.publish(log)
    assert (folder / "log/checkpoint").read_bytes() == shown
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


def test_of_many_who_swap_the_head_at_once_one_wins(folder: Path) -> None:
    SqliteHead(folder / "h.db").swap(None, b"old")
    won: list[int] = []

    def swap(number: int) -> None:
        try:
            SqliteHead(folder / "h.db").swap(b"old", b"%d" % number)
            won.append(number)
        except Conflict:
            pass

    threads = [Thread(target=swap, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(won) == 1
    assert SqliteHead(folder / "h.db").read() == b"%d" % won[0]


def test_a_crash_between_head_and_checkpoint_is_mended_at_start(folder: Path, logs: Any) -> None:
    logs.write(folder, *range(10))
    old = (folder / "log" / "checkpoint").read_bytes()
    logs.write(folder, "more")
    (folder / "log" / "checkpoint").write_bytes(old)
    logs.open(folder).close()
    assert LogFolder(folder / "log").head().size == 11


def test_each_checkpoint_is_copied_to_the_second_folder(folder: Path, logs: Any) -> None:
    logs.write(folder, "a", second=LocalObjects(folder / "second"))
    copy = (folder / "second" / "checkpoint").read_bytes()
    assert copy == (folder / "log" / "checkpoint").read_bytes()
    open_note(copy, [logs.signer.verifier])


def test_old_and_new_key_sign_together_and_then_the_new_one_alone(folder: Path, logs: Any) -> None:
    logs.write(folder, "old")
    new = Signer(logs.signer.name, Ed25519PrivateKey.from_private_bytes(b"\x08" * 32))
    head = SqliteHead(folder / "head.db")
    with pytest.raises(IntegrityError, match="not a checkpoint of this log's key"):
        Sequencer(folder / "log", head, new)
    log = Sequencer(folder / "log", head, new, also=[logs.signer])
    assert log.succeeded == logs.signer.verifier
    log.commit([b"both"])
    logs.publish(log)
    log.close()
    for vkey in (logs.vkey, new.verifier.vkey):
        assert verify_folder(folder / "log", Policy.of(vkey)).integrity.state == "ok"
    alone = Sequencer(folder / "log", head, new)
    assert alone.succeeded is None
    alone.commit([b"new"])
    logs.publish(alone)
    alone.close()
    logs.derive(folder, {0: b"old", 1: b"both", 2: b"new"}, [], new.verifier.vkey)


def test_a_long_backlog_is_kept_in_frames_that_can_be_read_again(folder: Path, logs: Any) -> None:
    """Nothing could be published for long, the largest entries came, and it was killed twice."""
    entries = [bytes([i % 251]) * 65_535 for i in range(1024)]
    log = logs.open(folder)
    log.commit(entries)
    log.commit([b"%d" % i for i in range(1024)])
    log.close()
    for _ in range(2):
        log = logs.open(folder)
        assert log.size == 2048
        assert len(segments(folder / "log" / "wal")) == 1
        log.close()
    logs.recheck(folder, dict(enumerate(entries)) | {2047: b"1023"}, [])
