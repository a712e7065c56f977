"""What the tests of the log share: a plain builder of whole logs, independent of the writer, for those that read them;
a folder, clients and a checker of every invariant for those that write."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from genward_audit.checkpoint import Checkpoint
from genward_audit.client import AuditClient, connect
from genward_audit.cosignature import Cosigner
from genward_audit.keyfile import create_key
from genward_audit.merkle import Frontier, leaf_hash, verify_consistency
from genward_audit.note import Signer, parse_note, sign
from genward_audit.policy import Policy
from genward_audit.reader import LogFolder
from genward_audit.sequencer import Sequencer
from genward_audit.storage import SqliteHead
from genward_audit.tiles import ENTRIES, TILE_WIDTH, encode_entries, new_tiles
from genward_audit.verify import verify_folder

ORIGIN = "audit.example/golden"
TIME = 1_790_000_000
SIGNER = Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
WITNESSES = tuple(
    Cosigner(f"witness.example/w{i}", Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32)) for i in (2, 3)
)

MakeLog = Callable[..., Path]


def build_log(
    folder: Path, entries: Sequence[bytes], signer: Signer = SIGNER, witnesses: Sequence[Cosigner] = ()
) -> Path:
    """Write checkpoint, tiles and bundles of a log, in one go."""
    nodes: dict[tuple[int, int], bytes] = {}
    frontier = Frontier()
    for entry in entries:
        frontier.append(leaf_hash(entry), lambda level, index, one: nodes.__setitem__((level, index), one))
    for tile in new_tiles(0, len(entries)):
        places = range(tile.index * TILE_WIDTH, tile.index * TILE_WIDTH + tile.width)
        path = folder / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if tile.level == ENTRIES:
            path.write_bytes(encode_entries([entries[at] for at in places]))
        else:
            path.write_bytes(b"".join(nodes[8 * tile.level, at] for at in places))
    text = Checkpoint(signer.name, len(entries), frontier.root()).marshal()
    note = parse_note(sign(text, signer)).with_signatures(*(one.cosign(text, TIME) for one in witnesses))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint").write_bytes(note.marshal())
    return folder


@pytest.fixture
def make_log(tmp_path: Path) -> MakeLog:
    """`make_log(entries, ...)` builds a log in a fresh folder and gives the folder."""

    def make(entries: Sequence[bytes], name: str = "log", **options: object) -> Path:
        return build_log(tmp_path / name, entries, **options)  # type: ignore[arg-type]

    return make


WRITTEN = Signer("test.example/log", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a Unix socket's has at most 107 bytes."""
    found = Path(tempfile.mkdtemp(prefix="ga", dir="/tmp"))
    create_key(found / "key.pem")
    yield found
    shutil.rmtree(found, ignore_errors=True)


@pytest.fixture
def join(folder: Path) -> Iterator[Callable[..., AuditClient]]:
    """Clients of the writer of `folder`, which ends with the test."""
    made: list[AuditClient] = []

    def joined(**options: Any) -> AuditClient:
        given = {"linger": 30, **options}
        made.append(connect(folder / "log", folder / "run", folder / "key.pem", WRITTEN.name, **given))
        return made[-1]

    yield joined
    for client in made:
        client.close()
    with suppress(OSError, ValueError):
        os.kill(int((folder / "log/wal/writer.lock").read_text()), signal.SIGKILL)


class Logs:
    """Logs that are written, and the checker of their every invariant."""

    signer = WRITTEN
    vkey = WRITTEN.verifier.vkey

    @staticmethod
    def open(folder: Path, **options: Any) -> Sequencer:
        """The sequencer of a folder, its head beside the log."""
        return Sequencer(folder / "log", SqliteHead(folder / "head.db"), WRITTEN, **options)

    @staticmethod
    def publish(log: Sequencer) -> Checkpoint:
        """A checkpoint over everything that is durable."""
        snapshot = log.snapshot()
        if snapshot is not None:
            log.publish(snapshot)
        return log.log.head()

    def write(self, folder: Path, *entries: object, **options: Any) -> Checkpoint:
        """Append entries to a folder's log, publish and close."""
        log = self.open(folder, **options)
        log.commit([str(one).encode() for one in entries])
        head = self.publish(log)
        log.close()
        return head

    def derive(
        self, folder: Path, acknowledged: Mapping[int, bytes], seen: Sequence[Checkpoint], *vkeys: str
    ) -> Checkpoint:
        """Derive every invariant anew: each acknowledged entry is in the tree at its index, each checkpoint
        is a prefix of the next and all are of the last, and the whole folder verifies."""
        read = LogFolder(folder / "log")
        head = read.head()
        for index, entry in acknowledged.items():
            assert read.entry(index) == entry, index
        for old, new in pairwise([one for one in (*seen, head) if one.size]):
            assert old.size <= new.size, "a checkpoint was taken back"
            verify_consistency(old.size, new.size, old.root, new.root, read.consistency(old.size, new.size))
        report = verify_folder(folder / "log", Policy.of(*(vkeys or [self.vkey])))
        assert report.integrity.state == "ok", report.integrity
        return head

    def recheck(self, folder: Path, acknowledged: Mapping[int, bytes], seen: Sequence[Checkpoint]) -> Checkpoint:
        """Restart the log, publish what waits, and derive every invariant."""
        log = self.open(folder)
        self.publish(log)
        log.close()
        return self.derive(folder, acknowledged, seen)


@pytest.fixture
def logs() -> Logs:
    """Opens, writes, publishes and rechecks logs."""
    return Logs()
