"""The write-ahead segment: entries are durable here before they are acknowledged, long before they are in tiles.

A frame is one batch:  crc32 (4, big-endian, of the rest) | index of the first entry (8) | bytes of the body (4) | body
and a body is entries as in a bundle, each with its length. A torn last frame fails its checksum and is dropped: none of
its entries was acknowledged. Anything wrong before the last frame is damage, and named.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from genward_audit.errors import AuditError, IntegrityError, Unavailable
from genward_audit.storage import sync_folder
from genward_audit.tiles import decode_entries, encode_entries

SUFFIX = ".wal"
_HEAD = struct.Struct(">IQI")
_LARGEST = 64 << 20


class Segment:
    """An open segment, appended to by one thread at a time."""

    def __init__(self, folder: Path, first: int) -> None:
        self.path = folder / f"{first:016d}{SUFFIX}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            sync_folder(folder)
        except OSError as error:
            raise Unavailable(f"cannot open: {error.strerror}", where=str(self.path)) from error
        self.size = 0

    def append(self, first: int, entries: Sequence[bytes]) -> None:
        """Write one frame and make it durable. Raises Unavailable; then nobody knows what is on disk."""
        data = frame(first, entries)
        try:
            written = 0
            while written < len(data):
                written += self.write(self._file, data[written:])
            self.sync(self._file)
        except OSError as error:
            raise Unavailable(f"cannot write: {error.strerror}", where=str(self.path)) from error
        self.size += len(data)

    write = staticmethod(os.write)
    sync = staticmethod(os.fdatasync)

    def close(self) -> None:
        os.close(self._file)


def frame(first: int, entries: Sequence[bytes]) -> bytes:
    """The bytes of one batch."""
    body = encode_entries(entries)
    rest = _HEAD.pack(0, first, len(body))[4:] + body
    return zlib.crc32(rest).to_bytes(4, "big") + rest


def read_frames(data: bytes, where: str) -> tuple[list[tuple[int, list[bytes]]], int]:
    """(frames as (first index, entries), bytes that are whole). IntegrityError for damage before the last frame."""
    frames: list[tuple[int, list[bytes]]] = []
    at = 0
    while at < len(data):
        found = _one(data, at)
        if found is None:
            if _frame_follows(data, at):
                raise IntegrityError(f"a frame at byte {at} is damaged", where=where, remedy="restore a copy")
            break
        first, entries, at = found
        frames.append((first, entries))
    return frames, at


def _one(data: bytes, at: int) -> tuple[int, list[bytes], int] | None:
    if at + _HEAD.size > len(data):
        return None
    crc, first, length = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + length
    if length > _LARGEST or end > len(data) or zlib.crc32(data[at + 4 : end]) != crc:
        return None
    try:
        return first, decode_entries(data[at + _HEAD.size : end]), end
    except AuditError:
        return None


def _frame_follows(data: bytes, at: int) -> bool:
    """Whether a whole frame stands behind a bad one: then this is no torn tail."""
    crc_and_head = data[at : at + _HEAD.size]
    if len(crc_and_head) < _HEAD.size:
        return False
    _, _, length = _HEAD.unpack(crc_and_head)
    places = [at + _HEAD.size + length] if length <= _LARGEST else []
    return any(place < len(data) and _one(data, place) is not None for place in places)


def segments(folder: Path) -> list[Path]:
    """Segment files in the order of their first entries."""
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
