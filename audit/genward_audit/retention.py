"""Retention, the pruning of C2SP tlog-tiles: files below a signed minimum index may go, the tree stays provable.

The order makes it checkable: first a `log.retain` act enters the log, then a checkpoint covers it, then the file
`minimum`, a note signed by the log's key, is written, and only then are files deleted. A tile goes only when every
leaf under it is below the minimum, so the root and all proofs above the minimum can still be computed.

    genward-audit/minimum@v1
    origin
    minimum index
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from genward_audit._text import decode_number
from genward_audit.entries import RETAIN, parse
from genward_audit.errors import AuditError, Conflict, FormatError, NotFound, SignatureError, UsageError
from genward_audit.note import MAX_NOTE, Signer, open_note, parse_note, sign
from genward_audit.policy import Policy
from genward_audit.reader import MINIMUM, LogFolder
from genward_audit.storage import LocalObjects
from genward_audit.tiles import ENTRIES, TILE_WIDTH, Tile, parse_path

HEADER = "genward-audit/minimum@v1"


@dataclass(frozen=True, slots=True)
class Minimum:
    """Entries below `index` of the log `origin` need not exist any more."""

    origin: str
    index: int

    def marshal(self) -> str:
        """The note's text."""
        return f"{HEADER}\n{self.origin}\n{self.index}\n"

    @classmethod
    def parse(cls, text: str) -> Minimum:
        """Read the note's text; raises FormatError."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[0] != HEADER or lines[3]:
            raise FormatError(f"a minimum is three lines: {HEADER}, origin, index")
        return cls(lines[1], decode_number(lines[2], "a minimum index"))


def read_minimum(folder: LogFolder, origin: str, policy: Policy | None = None) -> int:
    """The folder's minimum index, 0 where there is none. Raises where it is malformed, of another log, or, when a
    policy is given, not signed by a log key of it."""
    try:
        data = folder.read(MINIMUM, MAX_NOTE)
    except NotFound:
        return 0
    logs = [] if policy is None else [one.key for one in policy.logs if one.key.name == origin]
    note = parse_note(data) if policy is None else open_note(data, logs)
    minimum = Minimum.parse(note.text)
    if minimum.origin != origin:
        raise SignatureError(f"the minimum is of the log {minimum.origin}", where=MINIMUM)
    return minimum.index


def sign_again(folder: LogFolder, signer: Signer) -> None:
    """Put another key's signature on the minimum, where there is one: a rotation's new key must vouch for it too."""
    try:
        note = parse_note(folder.read(MINIMUM, MAX_NOTE))
    except NotFound:
        return
    LocalObjects(folder.path).write(MINIMUM, note.with_signatures(signer.sign(note.text)).marshal())


def is_below(tile: Tile, minimum: int) -> bool:
    """Are all leaves under this file below the minimum?"""
    leaves = TILE_WIDTH if tile.level == ENTRIES else TILE_WIDTH ** (tile.level + 1)
    return (tile.index + 1) * leaves <= minimum


def check_minimum(folder: LogFolder, minimum: int) -> str:
    """The log's origin; raises UsageError where the log is shorter, Conflict where the minimum would sink."""
    head = folder.head()
    if not 0 <= minimum <= head.size:
        raise UsageError(f"the log has {head.size} entries; the minimum cannot be {minimum}")
    before = read_minimum(folder, head.origin)
    if minimum < before:
        raise Conflict(f"the minimum is already {before} and cannot sink to {minimum}", where=MINIMUM)
    return head.origin


def prune(folder: LogFolder, minimum: int, *signers: Signer) -> int:
    """Sign the minimum into the folder and delete what lies below it; gives how many files went.

    Raises UsageError where the log is shorter, Conflict where the minimum would sink.
    """
    origin = check_minimum(folder, minimum)
    LocalObjects(folder.path).write(MINIMUM, sign(Minimum(origin, minimum).marshal(), *signers))
    return _delete_below(folder, minimum)


def is_announced(folder: LogFolder, minimum: int) -> bool:
    """Does a `log.retain` entry that the checkpoint covers announce this minimum? Newest entries first."""
    end = folder.head().size
    while end > minimum:
        start = max(minimum, (end - 1) // TILE_WIDTH * TILE_WIDTH)
        if any(_announces(entry, minimum) for _, entry in folder.entries(start, end)):
            return True
        end = start
    return False


def _announces(entry: bytes, minimum: int) -> bool:
    try:
        value = parse(entry)
    except AuditError:
        return False
    return value.get("act") == RETAIN and value.get("detail") == {"minimum": minimum}


def _delete_below(folder: LogFolder, minimum: int) -> int:
    deleted = 0
    for path, tile in list(tile_files(folder.path)):
        if tile is not None and is_below(tile, minimum):
            (folder.path / path).unlink(missing_ok=True)
            deleted += 1
    return deleted


def tile_files(root: Path) -> Iterator[tuple[str, Tile | None]]:
    """Every file under `tile/`, as (path inside the folder, its tile; None where the name is no tile's)."""
    for parent, _, names in os.walk(root / "tile"):
        for name in names:
            path = Path(parent, name).relative_to(root).as_posix()
            try:
                yield path, parse_path(path)
            except AuditError:
                yield path, None
