"""Frames on the writer's socket, both ways: length (4, big-endian, of what follows) | kind (1) | id (8) | body.

A reply carries the id of its request; kind 0 is good news, 1 an error as JSON {"error", "what", "where", "remedy"}.
"""

from __future__ import annotations

import json
import struct

from genward_audit import errors

_HEAD = struct.Struct(">IBQ")
HEAD_BYTES = _HEAD.size
LARGEST = 1 << 20

OK, FAILED = 0, 1
APPEND, STAMPED, ENTRY, PROOF, FIND, CHECKPOINT, VKEY, PING, STATS = range(16, 25)
SOCKET = "audit.sock"
_ERRORS = {
    cls.__name__: cls
    for cls in (errors.FormatError, errors.UsageError, errors.NotFound, errors.Conflict, errors.IntegrityError)
}


def pack(kind: int, number: int, body: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(9 + len(body), kind, number) + body


class Parser:
    """Cuts a stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """(kind, id, body) of every frame that is whole by now; FormatError for a length no frame has."""
        buffer, found, at = self._buffer, list[tuple[int, int, bytes]](), 0
        buffer += data
        while len(buffer) - at >= HEAD_BYTES:
            length, kind, number = _HEAD.unpack_from(buffer, at)
            if not 9 <= length <= LARGEST:
                raise errors.FormatError(f"a frame of {length} bytes")
            end = at + 4 + length
            if end > len(buffer):
                break
            found.append((kind, number, bytes(buffer[at + HEAD_BYTES : end])))
            at = end
        del buffer[:at]
        return found


def pack_error(number: int, error: Exception) -> bytes:
    """An error as a reply."""
    found = error if isinstance(error, errors.AuditError) else errors.Unavailable(f"the writer failed: {error}")
    body = {"error": type(found).__name__, "what": found.what, "where": found.where, "remedy": found.remedy}
    return pack(FAILED, number, json.dumps(body).encode())


def read_error(body: bytes) -> errors.AuditError:
    """The error a reply carries; Unavailable where it cannot be read."""
    try:
        said = json.loads(body)
        kind = _ERRORS.get(said["error"], errors.Unavailable)
        what, where, remedy = str(said["what"]), str(said["where"]), str(said["remedy"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return errors.Unavailable("the writer's error cannot be read")
    return kind(what, where=where, remedy=remedy)
