"""The sequencer: one per log. It gives entries their places, makes them durable, and publishes signed checkpoints.

    commit:     segment (fdatasync) -> acknowledge
    integrate:  tiles and bundles -> sign -> witnesses -> head (compare-and-swap) -> checkpoint -> old segments go

At every crash in between, what was acknowledged is in a segment or in tiles, and what was published is covered by both.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from genward_audit.checkpoint import Checkpoint
from genward_audit.errors import (
    AuditError,
    Conflict,
    FormatError,
    IntegrityError,
    NotFound,
    ProofError,
    Unavailable,
    UsageError,
)
from genward_audit.merkle import HASH_BYTES, Frontier, consistency_proof, leaf_hash, verify_consistency
from genward_audit.note import Signer, VerifierKey, open_note, sign
from genward_audit.policy import Policy
from genward_audit.reader import CHECKPOINT, LogFolder
from genward_audit.segment import Segment, read_frames, segments
from genward_audit.storage import Head, LocalObjects, Objects, optional, sync_folder
from genward_audit.tiles import ENTRIES, MAX_ENTRY, TILE_WIDTH, Tile, encode_entries, new_tiles, tile_at
from genward_audit.witness import Quorum

SEGMENT_BYTES = 4 << 20  # a segment this large is followed by a new one
WAL, LOCK = "wal", "writer.lock"
_ASK = "find out who wrote"


@dataclass(frozen=True)
class Snapshot:
    """What one integration publishes: tiles by path, and the tree they lead to."""

    old: int
    checkpoint: Checkpoint
    files: dict[str, bytes] = field(repr=False)
    full: list[Tile] = field(repr=False)


class Sequencer:
    """An open log. `commit` and `snapshot` belong to one thread, `publish` to another; nothing else writes.

    Args:
        folder: where write-ahead segments and the lock are; the log's public folder, unless `objects` says otherwise.
        head: the last checkpoint, held apart.
        signer: signs checkpoints; its name is the log's origin.
        objects: where public files go; else files under `folder`.
        second: a folder that gets a copy of each checkpoint.
        policy: witnesses whose quorum a checkpoint needs before it is published.
        also: keys that sign beside `signer` while a rotation's old and new key overlap.
        patience: seconds to wait for a writer that is about to end.

    Raises:
        Conflict: another writer holds the log, or head, second folder or a witness hold another history: a fork.
        IntegrityError: the disk is behind one of these (it was rolled back), or a file is damaged; says which.
        UsageError: the policy does not name the log's key.
    """

    def __init__(
        self,
        folder: Path,
        head: Head,
        signer: Signer,
        *,
        objects: Objects | None = None,
        second: Objects | None = None,
        policy: Policy | None = None,
        also: Sequence[Signer] = (),
        patience: float = 0.0,
    ) -> None:
        self.folder, self.head, self.signer, self.also = folder, head, signer, tuple(also)
        self.objects, self.second = objects or LocalObjects(folder), second
        self.quorum = _quorum(policy, signer, also)
        self.log = LogFolder(folder, None if objects is None else objects.read)
        self._lock = _exclusive(folder, patience)
        self._guard = threading.Lock()
        self._note: bytes | None = None  # what the head holds
        self._doubted: bytes | None = None  # what it may hold instead: a swap failed, nobody knows how
        self._published = Checkpoint(signer.name, 0, Frontier().root())
        self.frontier = Frontier()
        self._segment: Segment | None = None
        self._entries: list[bytes] = []  # from `_base` on: what full bundles on disk do not hold
        self._base = 0
        self._rows: dict[int, _Row] = {}
        try:
            self._recover()
            self._look_elsewhere()
        except BaseException:
            self.close()
            raise

    # state

    @property
    def size(self) -> int:
        """Entries that are durable."""
        return self.frontier.size

    @property
    def published(self) -> int:
        """Entries that the last checkpoint covers."""
        return self._published.size

    def pending(self, index: int) -> bytes:
        """An entry that no checkpoint covers yet; NotFound."""
        with self._guard:
            at = index - self._base
            if not 0 <= at < len(self._entries):
                raise NotFound(f"no entry {index}", remedy=f"the log has {self.size}")
            return self._entries[at]

    @property
    def succeeded(self) -> VerifierKey | None:
        """The key that signed the last checkpoint, where this one did not yet: a rotation begins."""
        if self._note is None:
            return None
        keys = [one.verifier for one in (self.signer, *self.also)]
        signed = {one.key for one in open_note(self._note, keys).verified}
        return None if self.signer.verifier in signed else keys[1]

    def newest(self) -> bytes | None:
        """The last entry, None in an empty log."""
        at = self.size - 1
        return None if at < 0 else self.log.entry(at, self.published) if at < self.published else self.pending(at)

    def tail(self) -> list[tuple[int, bytes]]:
        """(index, entry) of what no checkpoint covers yet."""
        with self._guard:
            start = self._published.size
            return list(enumerate(self._entries[start - self._base :], start))

    # commit

    def commit(self, entries: Sequence[bytes]) -> int:
        """Make a batch durable; returns the index of its first entry. After Unavailable call `recover`."""
        for entry in entries:
            if len(entry) > MAX_ENTRY:
                raise UsageError(f"an entry has at most {MAX_ENTRY} bytes, not {len(entry)}", remedy="log a digest")
        first = self.frontier.size
        self._open_segment(first).append(first, entries)
        with self._guard:
            for entry in entries:
                self._add(entry)
        return first

    def recover(self) -> None:
        """Forget what is in memory and stand on what the disk says, after a write failed."""
        self._close_segment()
        self._recover()

    def _open_segment(self, first: int) -> Segment:
        """The segment to append to; one that is large enough is followed by a new one."""
        if self._segment is None:
            raise Unavailable("the log does not stand on its disk yet", where=str(self.folder))
        if self._segment.size > SEGMENT_BYTES:
            following = Segment(self.folder / WAL, first)
            self._close_segment()
            self._segment = following
        return self._segment

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
        self._segment = None

    def _add(self, entry: bytes) -> None:
        self._entries.append(entry)
        self.frontier.append(leaf_hash(entry), self._visit)

    def _visit(self, level: int, index: int, one: bytes) -> None:
        if level % 8 == 0:
            self._rows.setdefault(level // 8, _Row(index // TILE_WIDTH * TILE_WIDTH)).hashes.extend(one)

    # integrate

    def snapshot(self) -> Snapshot | None:
        """What a checkpoint over everything durable would publish; None when nothing is new."""
        with self._guard:
            old, new = self._published.size, self.frontier.size
            if old == new:
                return None
            tiles = list(new_tiles(old, new))
            files = {tile.path: self._bytes(tile) for tile in tiles}
            head = Checkpoint(self.signer.name, new, self.frontier.root())
        return Snapshot(old, head, files, [tile for tile in tiles if tile.width == TILE_WIDTH])

    def publish(self, snapshot: Snapshot) -> None:
        """Write tiles, then the head, then the checkpoint. Done again after a failure, it writes the same."""
        for path, data in snapshot.files.items():
            self.objects.write(path, data)
        note = self._signed(snapshot)
        self._swap(note)
        self._show(note)
        self._published = snapshot.checkpoint
        with self._guard:
            self._trim(snapshot.checkpoint.size)
        self._tidy(snapshot)

    def _swap(self, note: bytes) -> None:
        """Move the head. After a swap that failed the head is asked what it holds: it may have persisted."""
        if self._doubted is not None and self.head.read() == self._doubted:
            self._note = self._doubted
        if note != self._note:
            self._doubted = note
            self.head.swap(self._note, note)
        self._note, self._doubted = note, None

    def _sign(self, checkpoint: Checkpoint) -> bytes:
        return sign(checkpoint.marshal(), self.signer, *self.also)

    def _signed(self, snapshot: Snapshot) -> bytes:
        note = self._sign(snapshot.checkpoint)
        if self.quorum is None:
            return note
        size = snapshot.checkpoint.size
        return self.quorum.collect(note, lambda old: consistency_proof(old, size, self.log.hashes(size)))

    def _show(self, note: bytes) -> None:
        self.objects.write(CHECKPOINT, note)
        if self.second is not None:
            self.second.write(CHECKPOINT, note)

    def _bytes(self, tile: Tile) -> bytes:
        start = tile.index * TILE_WIDTH
        if tile.level == ENTRIES:
            at = start - self._base
            return encode_entries(self._entries[at : at + tile.width])
        row = self._rows[tile.level]
        at = (start - row.base) * HASH_BYTES
        return bytes(row.hashes[at : at + tile.width * HASH_BYTES])

    def _trim(self, size: int) -> None:
        """Drop from memory what full tiles on disk hold."""
        keep = size // TILE_WIDTH * TILE_WIDTH
        del self._entries[: keep - self._base]
        self._base = keep
        for level, row in self._rows.items():
            full = (size >> (8 * level)) // TILE_WIDTH * TILE_WIDTH
            del row.hashes[: (full - row.base) * HASH_BYTES]
            row.base = full

    def _tidy(self, snapshot: Snapshot) -> None:
        """Remove what nothing needs any more: narrower tiles of full ones, segments whose entries are in tiles."""
        for tile in snapshot.full:
            self.objects.remove(f"{tile.path}.p")
        kept = None if self._segment is None else self._segment.path
        for path, following in itertools.pairwise(segments(self.folder / WAL)):
            if int(following.stem) <= snapshot.checkpoint.size and path != kept:
                _remove(path)

    # recovery

    def _recover(self) -> None:
        self._note, self._doubted = self.head.read(), None
        self._published = self._agree()
        self._load(self._published)
        waiting = self._waiting()
        self._segment = self._rewritten(waiting)
        for entry in waiting:
            self._add(entry)
        if self._note is not None and optional(lambda: self.objects.read(CHECKPOINT)) != self._note:
            self._show(self._note)  # a crash between head and checkpoint

    def _agree(self) -> Checkpoint:
        """The checkpoint that head and disk agree on; Conflict or IntegrityError says how they differ."""
        shown = self._opened(optional(lambda: self.objects.read(CHECKPOINT)), str(self.folder / CHECKPOINT))
        held = self._opened(self._note, "the head")
        if held.size < shown.size:
            raise IntegrityError(
                f"the head (size {held.size}) is behind the checkpoint on disk (size {shown.size}): the head was "
                "rolled back, or it belongs to another log",
                where=str(self.folder),
                remedy="restore the head that goes with this log",
            )
        if held.size == shown.size and held.root != shown.root:
            raise Conflict("head and disk are two histories: a fork", where=str(self.folder), remedy=_ASK)
        return held

    def _opened(self, note: bytes | None, where: str) -> Checkpoint:
        if note is None:
            return Checkpoint(self.signer.name, 0, Frontier().root())
        try:
            found = Checkpoint.parse(open_note(note, [one.verifier for one in (self.signer, *self.also)]).text)
        except AuditError as error:
            raise IntegrityError(f"not a checkpoint of this log's key: {error.what}", where=where) from None
        if found.origin != self.signer.name:
            raise Conflict(f"belongs to the log {found.origin}", where=where, remedy="name the right folder or origin")
        return found

    def _load(self, head: Checkpoint) -> None:
        """Frontier and partial tiles of a published tree, checked against its root."""
        self._entries, self._base, self._rows = [], 0, {}
        try:
            self.frontier = Frontier.of_tree(head.size, self.log.hashes(head.size)) if head.size else Frontier()
            if self.frontier.root() != head.root:
                raise IntegrityError("the tiles do not lead to the head's root", where=str(self.folder / "tile"))
            self._load_edges(head.size)
        except (NotFound, FormatError, IntegrityError) as error:
            raise IntegrityError(
                f"the disk is behind or apart from the head of size {head.size}: it was rolled back or damaged: "
                f"{error.where or self.folder}: {error.what}",
                where=str(self.folder),
                remedy="'genward audit verify' names every damaged file; restore the log, nothing was written",
            ) from error

    def _load_edges(self, size: int) -> None:
        """What is not in full tiles yet; the root has vouched for the hashes, they vouch for the entries."""
        level = 0
        while size >> (8 * level):
            count = size >> (8 * level)
            row = _Row(count // TILE_WIDTH * TILE_WIDTH)
            if count % TILE_WIDTH:
                row.hashes.extend(self.log.tile(Tile(level, count // TILE_WIDTH, count % TILE_WIDTH)))
            self._rows[level] = row
            level += 1
        self._base = size // TILE_WIDTH * TILE_WIDTH
        if size > self._base:
            self._entries = self._edge_entries(tile_at(ENTRIES, size // TILE_WIDTH, size))

    def _edge_entries(self, place: Tile) -> list[bytes]:
        where = str(self.folder / place.path)
        try:
            entries = list(self.log.bundle(place.index, place.width))
        except FormatError as error:
            raise IntegrityError(error.what, where=where) from None
        if b"".join(map(leaf_hash, entries)) != bytes(self._rows[0].hashes):
            raise IntegrityError("its entries do not hash to their leaves", where=where)
        return entries

    def _waiting(self) -> list[bytes]:
        """Entries of the segments behind the head, in order; IntegrityError for a gap or damage."""
        found: list[bytes] = []
        paths = segments(self.folder / WAL)
        for path in paths:
            data = _read(path)
            frames, whole = read_frames(data, str(path))
            if whole < len(data) and path != paths[-1]:
                raise IntegrityError("a segment before the last is cut short", where=str(path))
            for first, entries in frames:
                at = self._published.size + len(found)
                if first > at:
                    raise IntegrityError(f"entries {at} to {first - 1} are missing", where=str(path))
                found += entries[max(0, at - first) :]
        return found

    def _rewritten(self, waiting: Sequence[bytes]) -> Segment:
        """A fresh segment that holds what waits, durable before anything goes on: after a failed fsync the page cache
        may show what the disk does not have. The old ones go only then, and for good."""
        old = segments(self.folder / WAL)
        segment = Segment(self.folder / WAL, self.frontier.size, waiting)
        try:
            for path in old:
                if path != segment.path:
                    _remove(path)
            _sync(self.folder / WAL)
        except Unavailable:
            segment.close()
            raise
        return segment

    def _look_elsewhere(self) -> None:
        """Compare with what the second folder and the witnesses hold: a head that was rolled back with its disk agrees
        with it, they do not."""
        if self.second is not None:
            place = "the second folder"
            self._compare(self._opened(optional(lambda: self._second_read()), place), place, self.published)
        if self.quorum is None:
            return
        for name, held in self.quorum.held(self._note or self._sign(self._published)).items():
            if held > self.size:  # what waits in segments may have been cosigned before a crash
                raise _behind(f"the witness {name}", held, self.size, self.folder)

    def _second_read(self) -> bytes:
        return b"" if self.second is None else self.second.read(CHECKPOINT)

    def _compare(self, other: Checkpoint, place: str, size: int) -> None:
        if other.size > size:
            raise _behind(place, other.size, size, self.folder)
        try:
            if other.size:
                proof = self.log.consistency(other.size, size)
                verify_consistency(other.size, size, other.root, self._published.root, proof)
        except NotFound:
            return  # retention deleted the tiles that would tell
        except ProofError:
            raise Conflict(f"{place} holds another history: a fork", where=str(self.folder), remedy=_ASK) from None

    def close(self) -> None:
        """Let go of the log."""
        self._close_segment()
        self._lock.close()


@dataclass
class _Row:
    """Hashes of one tile level from position `base` on."""

    base: int
    hashes: bytearray = field(default_factory=bytearray)


def _exclusive(folder: Path, patience: float) -> BinaryIO:
    """Hold the log's lock; Conflict when another writer does."""
    try:
        (folder / WAL).mkdir(parents=True, exist_ok=True)
        file = (folder / WAL / LOCK).open("a+b")
    except OSError as error:
        raise Unavailable(f"the log cannot be opened: {error.strerror}", where=str(folder)) from error
    if not _locked(file, time.monotonic() + patience):
        file.seek(0)
        owner = file.read().decode(errors="replace").strip() or "unknown"
        file.close()
        raise Conflict(f"another writer (process {owner}) holds this log", where=str(folder), remedy="stop it")
    with suppress(OSError):  # the number is for people; the lock is what counts
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
    return file


def _locked(file: BinaryIO, until: float) -> bool:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)


def _quorum(policy: Policy | None, signer: Signer, also: Sequence[Signer]) -> Quorum | None:
    if policy is None:
        return None
    if not {party.key for party in policy.logs} & {one.verifier for one in (signer, *also)}:
        remedy = f"add the line: log {signer.verifier.vkey}"
        raise UsageError("the witnesses' policy does not name this log's key", where=signer.name, remedy=remedy)
    return Quorum(policy)


def _behind(place: str, held: int, size: int, folder: Path) -> IntegrityError:
    return IntegrityError(
        f"{place} holds a checkpoint of size {held}, this disk only {size} entries: it was rolled back",
        where=str(folder),
        remedy="restore the log; nothing was written",
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"cannot read: {error.strerror}", where=str(path)) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(f"cannot remove: {error.strerror}", where=str(path)) from error


def _sync(folder: Path) -> None:
    try:
        sync_folder(folder)
    except OSError as error:
        raise Unavailable(f"cannot sync: {error.strerror}", where=str(folder)) from error
