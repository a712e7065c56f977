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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from genward_audit.checkpoint import Checkpoint
from genward_audit.errors import AuditError, Conflict, IntegrityError, NotFound, Unavailable, UsageError
from genward_audit.merkle import HASH_BYTES, Frontier, leaf_hash
from genward_audit.note import Signer, open_note, sign
from genward_audit.policy import Policy
from genward_audit.reader import CHECKPOINT, LogFolder
from genward_audit.segment import Segment, read_frames, segments
from genward_audit.storage import Head, LocalObjects, Objects, optional
from genward_audit.tiles import ENTRIES, MAX_ENTRY, TILE_WIDTH, Tile, encode_entries, new_tiles
from genward_audit.witness import Quorum

SEGMENT_BYTES = 4 << 20  # a segment this large is followed by a new one
WAL, LOCK = "wal", "writer.lock"


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
        folder: the log's public folder.
        head: the last checkpoint, held apart.
        signer: signs checkpoints; its name is the log's origin.
        objects: where public files go; else files under `folder`.
        second: a folder that gets a copy of each checkpoint.
        policy: witnesses whose quorum a checkpoint needs before it is published.

    Raises:
        Conflict: another writer holds the log, or the head belongs to another log or another history (a fork).
        IntegrityError: the disk was rolled back behind the head, or a file is damaged; says which.
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
    ) -> None:
        self.folder, self.head, self.signer = folder, head, signer
        self.objects, self.second = objects or LocalObjects(folder), second
        self.quorum = None if policy is None else Quorum(policy)
        self.log = LogFolder(folder)
        self._lock = _exclusive(folder)
        self._guard = threading.Lock()
        self._note: bytes | None = None
        self._published = Checkpoint(signer.name, 0, Frontier().root())
        self.frontier = Frontier()
        self._segment: Segment
        self._entries: list[bytes] = []  # from `_base` on: what full bundles on disk do not hold
        self._base = 0
        self._rows: dict[int, _Row] = {}
        try:
            self._recover()
        except BaseException:
            self._lock.close()
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
        if self._segment.size > SEGMENT_BYTES:
            self._next_segment()
        self._segment.append(first, entries)
        with self._guard:
            for entry in entries:
                self._add(entry)
        return first

    def recover(self) -> None:
        """Forget what is in memory and stand on what the disk says, after a write failed."""
        self._segment.close()
        self._recover()

    def _next_segment(self) -> None:
        self._segment.close()
        self._segment = Segment(self.folder / WAL, self.frontier.size)

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
        self.head.swap(self._note, note)
        self._note, self._published = note, snapshot.checkpoint
        self._show(note)
        with self._guard:
            self._trim(snapshot.checkpoint.size)
        self._tidy(snapshot)

    def _signed(self, snapshot: Snapshot) -> bytes:
        note = sign(snapshot.checkpoint.marshal(), self.signer)
        if self.quorum is None:
            return note
        size = snapshot.checkpoint.size
        from genward_audit.merkle import consistency_proof

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
            partial = self.folder / f"{tile.path}.p"
            if partial.is_dir():
                for path in partial.iterdir():
                    path.unlink(missing_ok=True)
                partial.rmdir()
        paths = segments(self.folder / WAL)
        for path, following in itertools.pairwise(paths):
            if int(following.stem) <= snapshot.checkpoint.size and path != self._segment.path:
                path.unlink(missing_ok=True)

    # recovery

    def _recover(self) -> None:
        self._note = self.head.read()
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
            raise Conflict(
                "head and disk are two histories: a fork", where=str(self.folder), remedy="find out who wrote"
            )
        return held

    def _opened(self, note: bytes | None, where: str) -> Checkpoint:
        if note is None:
            return Checkpoint(self.signer.name, 0, Frontier().root())
        try:
            found = Checkpoint.parse(open_note(note, [self.signer.verifier]).text)
        except AuditError as error:
            raise IntegrityError(f"not a checkpoint of this log's key: {error.what}", where=where) from None
        if found.origin != self.signer.name:
            raise Conflict(f"belongs to the log {found.origin}", where=where, remedy="name the right folder or origin")
        return found

    def _load(self, head: Checkpoint) -> None:
        """Frontier and partial tiles of a published tree, checked against its root."""
        self.log = LogFolder(self.folder)
        self._entries, self._base, self._rows = [], 0, {}
        try:
            self.frontier = Frontier.of_tree(head.size, self.log.hashes(head.size)) if head.size else Frontier()
            if self.frontier.root() != head.root:
                raise IntegrityError("the tiles do not lead to the head's root", where=str(self.folder / "tile"))
            self._load_edges(head.size)
        except (NotFound, IntegrityError) as error:
            raise IntegrityError(
                f"the disk is behind or apart from the head of size {head.size}: it was rolled back or damaged: "
                f"{error.where or self.folder}: {error.what}",
                where=str(self.folder),
                remedy="restore the log; nothing was written",
            ) from error

    def _load_edges(self, size: int) -> None:
        self._base = size // TILE_WIDTH * TILE_WIDTH
        if size > self._base:
            self._entries = list(self.log.bundle(size // TILE_WIDTH, size % TILE_WIDTH))
        level = 0
        while size >> (8 * level):
            count = size >> (8 * level)
            row = _Row(count // TILE_WIDTH * TILE_WIDTH)
            if count % TILE_WIDTH:
                row.hashes.extend(self.log.tile(Tile(level, count // TILE_WIDTH, count % TILE_WIDTH)))
            self._rows[level] = row
            level += 1

    def _waiting(self) -> list[bytes]:
        """Entries of the segments behind the head, in order; IntegrityError for a gap or damage."""
        found: list[bytes] = []
        paths = segments(self.folder / WAL)
        for path in paths:
            data = path.read_bytes()
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
        may show what the disk does not have. The old ones go only then."""
        old = segments(self.folder / WAL)
        path = self.folder / WAL / f"{self.frontier.size:016d}.wal"
        spare = path.with_suffix(".old")
        if path in old:
            path.replace(spare)
            old = [spare if one == path else one for one in old]
        try:
            segment = Segment(self.folder / WAL, self.frontier.size)
            if waiting:
                segment.append(self.frontier.size, waiting)
        except Unavailable:
            if spare in old:
                spare.replace(path)
            raise
        for one in old:
            one.unlink(missing_ok=True)
        return segment

    def close(self) -> None:
        """Let go of the log."""
        self._segment.close()
        self._lock.close()


@dataclass
class _Row:
    """Hashes of one tile level from position `base` on."""

    base: int
    hashes: bytearray = field(default_factory=bytearray)


def _exclusive(folder: Path) -> BinaryIO:
    """Hold the log's lock; Conflict when another writer does."""
    try:
        (folder / WAL).mkdir(parents=True, exist_ok=True)
        file = (folder / WAL / LOCK).open("a+b")
    except OSError as error:
        raise Unavailable(f"the log cannot be opened: {error.strerror}", where=str(folder)) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().decode(errors="replace").strip() or "unknown"
        file.close()
        raise Conflict(
            f"another writer (process {owner}) holds this log", where=str(folder), remedy="stop it"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())
    file.flush()
    return file


Made = Callable[[], Sequencer]
