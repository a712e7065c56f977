"""Reading a log folder: `checkpoint` and `tile/...` files, ours or a stranger's, live or copied.

`LogFolder` opens nothing for long and keeps a few tiles at most, so memory stays flat however long the log is.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from genward_audit.checkpoint import Checkpoint
from genward_audit.errors import AuditError, FormatError, IntegrityError, NotFound, Unavailable
from genward_audit.merkle import HASH_BYTES, consistency_proof, inclusion_proof
from genward_audit.note import MAX_NOTE, parse_note
from genward_audit.proof import Proof
from genward_audit.tiles import (
    ENTRIES,
    MAX_ENTRY,
    TILE_BYTES,
    TILE_WIDTH,
    Tile,
    check_tile,
    decode_entries,
    node_from_tile,
    tile_at,
    tile_of_node,
)

CHECKPOINT = "checkpoint"
MINIMUM = "minimum"
MAX_BUNDLE = TILE_WIDTH * (MAX_ENTRY + 2)
_CACHED_TILES = 64

Read = Callable[[str], bytes]


def read_file(path: Path, limit: int) -> bytes:
    """A regular file's bytes; raises NotFound, Unavailable, or IntegrityError where it is longer than `limit`."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
        with open(handle, "rb") as file:  # noqa: PTH123 - the descriptor is already open
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise IntegrityError("not a regular file", where=str(path))
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("the file is missing", where=str(path)) from None
    except OSError as error:
        raise Unavailable(f"cannot read: {error.strerror}", where=str(path)) from error
    if len(data) > limit:
        raise IntegrityError(f"the file is longer than {limit} bytes", where=str(path))
    return data


class LogFolder:
    """A log's files on disk. Reads only; checks forms, not truth: `verify_folder` does that."""

    def __init__(self, path: Path | str, read: Read | None = None) -> None:
        self.path = Path(path)
        self._read = read  # of a log whose files lie elsewhere: (name) -> bytes
        self.files_read = 0

    def read(self, name: str, limit: int) -> bytes:
        """One file by its path inside the folder; raises NotFound, Unavailable or IntegrityError."""
        self.files_read += 1
        if self._read is None:
            return read_file(self.path / name, limit)
        data = self._read(name)
        if len(data) > limit:
            raise IntegrityError(f"the file is longer than {limit} bytes", where=name)
        return data

    def checkpoint_note(self) -> bytes:
        """The signed checkpoint's bytes."""
        try:
            return self.read(CHECKPOINT, MAX_NOTE)
        except NotFound:
            remedy = "name the folder that holds 'checkpoint' and 'tile'"
            raise NotFound("no checkpoint here", where=str(self.path), remedy=remedy) from None

    def head(self) -> Checkpoint:
        """The checkpoint, its signatures unchecked."""
        return Checkpoint.parse(parse_note(self.checkpoint_note()).text)

    def tile(self, tile: Tile) -> bytes:
        """A tile's bytes, exactly `width` hashes; a partial tile that is gone is cut from the full one."""
        try:
            return check_tile(self.read(tile.path, TILE_BYTES), tile)
        except NotFound:
            if tile.width == TILE_WIDTH:
                raise
            return check_tile(self.read(tile.full.path, TILE_BYTES), tile.full)[: tile.width * HASH_BYTES]

    def bundle(self, index: int, width: int = TILE_WIDTH) -> list[bytes]:
        """The entries of a bundle, exactly `width`; a partial bundle that is gone is cut from the full one."""
        tile = Tile(ENTRIES, index, width)
        try:
            entries = decode_entries(self.read(tile.path, MAX_BUNDLE))
        except NotFound:
            if width == TILE_WIDTH:
                raise
            entries = decode_entries(self.read(tile.full.path, MAX_BUNDLE))[:width]
        if len(entries) != width:
            raise FormatError(f"the bundle holds {len(entries)} entries, not {width}")
        return entries

    def entry(self, index: int, size: int | None = None) -> bytes:
        """One entry's bytes; raises NotFound outside the checkpoint or below what is kept."""
        size = self.head().size if size is None else size
        if not 0 <= index < size:
            raise NotFound(f"the log has {size} entries and no entry {index}", where=str(self.path))
        number = index // TILE_WIDTH
        return self.bundle(number, tile_at(ENTRIES, number, size).width)[index % TILE_WIDTH]

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """(index, entry) in order from `start` to before `end`; one bundle in memory at a time."""
        size = self.head().size
        end = size if end is None else min(end, size)
        for number in range(max(start, 0) // TILE_WIDTH, (end + TILE_WIDTH - 1) // TILE_WIDTH):
            first = number * TILE_WIDTH
            for at, entry in enumerate(self.bundle(number, tile_at(ENTRIES, number, size).width), first):
                if start <= at < end:
                    yield at, entry

    def last(self, count: int) -> list[tuple[int, bytes]]:
        """The newest `count` entries, oldest first."""
        size = self.head().size
        return list(self.entries(max(0, size - count)))

    def hashes(self, size: int) -> HashReader:
        """Node hashes of the log as it was at `size`."""
        return HashReader(self, size)

    def proof(self, index: int, extra: bytes | None = None) -> bytes | None:
        """The `.tlog-proof` of an entry from its tiles alone; None until the checkpoint covers it."""
        note = self.checkpoint_note()
        size = Checkpoint.parse(parse_note(note).text).size
        if index >= size:
            return None
        hashes = inclusion_proof(index, size, self.hashes(size))
        return Proof(index, tuple(hashes), note, extra).marshal()

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The consistency proof between two sizes, from tiles."""
        return consistency_proof(old, new, self.hashes(new))


class HashReader:
    """`ReadHash` over a folder's tiles; keeps the last 64 tiles (half a megabyte)."""

    def __init__(self, folder: LogFolder, size: int) -> None:
        self._folder = folder
        self._size = size
        self._tiles: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def __call__(self, level: int, index: int) -> bytes:
        """Root of the perfect subtree (level, index); raises NotFound, FormatError or IntegrityError."""
        place = tile_of_node(level, index)
        data = self._tiles.get(place)
        if data is None:
            data = self._tiles[place] = self._load(*place)
            if len(self._tiles) > _CACHED_TILES:
                self._tiles.popitem(last=False)
        return node_from_tile(data, level, index)

    def _load(self, level: int, index: int) -> bytes:
        tile = tile_at(level, index, self._size)
        try:
            return self._folder.tile(tile)
        except AuditError as error:
            where = error.where or str(self._folder.path / tile.path)
            raise type(error)(error.what, where=where, remedy=error.remedy) from None
