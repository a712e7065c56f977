"""The write-ahead segment: entries are durable here before they are acknowledged, long before they are in tiles.

A frame is one batch:  crc32 (4, big-endian, of the rest) | index of the first entry (8) | bytes of the body (4) | body
and a body is entries as in a bundle, each with its length. A torn last frame is dropped: none of its entries was
acknowledged. Whatever else is wrong is damage, and named: a bad frame with a whole one behind it, and a last one that
is all there and yet fails its checksum, since a torn write leaves the end of a file or whole sectors out, not a bit.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from genward_audit.errors import AuditError, IntegrityError, Unavailable
from genward_audit.storage import sync_folder
from genward_audit.tiles import MAX_ENTRY, decode_entries, encode_entries

SUFFIX = ".wal"
FRAME_ENTRIES = 1024  # at most, in one frame
_HEAD = struct.Struct(">IQI")
_LARGEST = FRAME_ENTRIES * (MAX_ENTRY + 2)
_SECTOR = 512  # the least that a disk writes whole


class Segment:
    """An open segment, appended to by one thread at a time. Its file appears under its name with `entries` durable in
    it, in one step, so that it can take the place of older ones that hold the same entries."""

    def __init__(self, folder: Path, first: int, entries: Sequence[bytes] = ()) -> None:
        self.path, self.size = folder / f"{first:016d}{SUFFIX}", 0
        self._file: int | None = None
        part = folder / f".{self.path.name}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            for start in range(0, len(entries), FRAME_ENTRIES):
                self.append(first + start, entries[start : start + FRAME_ENTRIES])
            part.replace(self.path)
            sync_folder(folder)
        except OSError as error:
            self.close()
            raise Unavailable(f"cannot open: {error.strerror}", where=str(self.path)) from error
        except Unavailable:
            self.close()
            raise

    def append(self, first: int, entries: Sequence[bytes]) -> None:
        """Write one frame and make it durable. Raises Unavailable; then nobody knows what is on disk."""
        if self._file is None:
            raise Unavailable("the segment is closed", where=str(self.path))
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
        """Let go of the file; again is no error, for its number may be another file's by then."""
        handle, self._file = self._file, None
        if handle is not None:
            os.close(handle)


def frame(first: int, entries: Sequence[bytes]) -> bytes:
    """The bytes of one batch."""
    body = encode_entries(entries)
    rest = _HEAD.pack(0, first, len(body))[4:] + body
    return zlib.crc32(rest).to_bytes(4, "big") + rest


def read_frames(data: bytes, where: str) -> tuple[list[tuple[int, list[bytes]]], int]:
    """(frames as (first index, entries), bytes that are whole). IntegrityError for damage; a torn tail is left out."""
    frames: list[tuple[int, list[bytes]]] = []
    at = 0
    while at < len(data):
        found = _one(data, at)
        if found is None:
            if not _is_torn(data, at):
                raise IntegrityError(f"the frame at byte {at} is damaged", where=where, remedy="restore a copy")
            break
        first, entries, at = found
        frames.append((first, entries))
    return frames, at


def _one(data: bytes, at: int) -> tuple[int, list[bytes], int] | None:
    if at + _HEAD.size > len(data):
        return None
    crc, first, length = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + length
    if length > _LARGEST or end > len(data) or zlib.crc32(memoryview(data)[at + 4 : end]) != crc:
        return None
    try:
        return first, decode_entries(data[at + _HEAD.size : end]), end
    except AuditError:
        return None


def _is_torn(data: bytes, at: int) -> bool:
    """Whether a bad frame is the last one, cut short: by its end, or by sectors that were never written."""
    if len(data) - at < _HEAD.size:
        return True
    _, _, length = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + length
    if end < len(data) and _one(data, end) is not None:
        return False
    return not _has_bent_length(data, at) if end > len(data) else _has_empty_sector(data, at)


def _has_bent_length(data: bytes, at: int) -> bool:
    """Is this a whole frame but for a flipped bit in its length, which lets it reach behind the end?"""
    crc, first, length = _HEAD.unpack_from(data, at)
    begin = at + _HEAD.size
    for right in (length ^ (1 << bit) for bit in range(32)):
        if begin + right <= len(data):
            start = zlib.crc32(_HEAD.pack(0, first, right)[4:])
            if zlib.crc32(memoryview(data)[begin : begin + right], start) == crc:
                return True
    return False


def _has_empty_sector(data: bytes, at: int) -> bool:
    starts = [at, *range((at // _SECTOR + 1) * _SECTOR, len(data), _SECTOR)]
    pieces = (data[start : (start // _SECTOR + 1) * _SECTOR] for start in starts)
    return any(not any(piece) for piece in pieces)


def segments(folder: Path) -> list[Path]:
    """Segment files in the order of their first entries."""
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
