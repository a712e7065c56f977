"""Recomputing a log's tree from its entries, bundle by bundle, and telling which file is damaged.

Every hash is there up to three times: from the entries, in its tile, and, folded, in the tile above. Where two
disagree both alternatives are carried upwards, each with the files it would accuse; the level above, and at last the
signed root, decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path

from genward_audit._story import Story, tell
from genward_audit.errors import AuditError, NotFound
from genward_audit.merkle import EMPTY_ROOT, HASH_BYTES, fold
from genward_audit.reader import LogFolder
from genward_audit.tiles import ENTRIES, TILE_WIDTH, Tile, level_size, levels, pieces_of, subtree_root, tile_at

Blame = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One reading of a tile: its joined hashes (its root, where full) and the files that are damaged if it is true."""

    hashes: bytes
    blame: Blame = ()


@dataclass(frozen=True, slots=True)
class Scan:
    """What one bundle gave: readings of its leaf tile, and its story."""

    index: int
    choices: tuple[Choice, ...]
    missing: Blame
    story: Story


def _reason(path: str, error: AuditError) -> str:
    return f"{path}: {error.what}"


def _leaf_row(entries: list[bytes]) -> bytes:
    return b"".join([sha256(b"\x00" + entry).digest() for entry in entries])


def _up(row: bytes) -> bytes:
    """What the level above sees: the root of a full tile, the row itself at the right edge."""
    return subtree_root(row) if len(row) == TILE_WIDTH * HASH_BYTES else row


def scan_bundle(folder: LogFolder, index: int, size: int, story: bool) -> Scan:
    """Hash a bundle and hold it against its leaf tile."""
    tile, place = tile_at(0, index, size), tile_at(ENTRIES, index, size)
    problems: list[str] = []
    entries: list[bytes] = []
    row = kept = b""
    try:
        entries = folder.bundle(index, place.width)
        row = _leaf_row(entries)
    except AuditError as error:
        problems.append(_reason(place.path, error))
    try:
        kept = folder.tile(tile)
    except AuditError as error:
        problems.append(_reason(tile.path, error))
    told = tell(entries, index * TILE_WIDTH) if story else Story()
    if row and kept and row != kept:
        return Scan(index, _disagree(row, kept, tile, place), (), told)
    choices = (Choice(_up(row or kept), tuple(problems)),) if row or kept else ()
    return Scan(index, choices, () if choices else tuple(problems), told)


def _disagree(row: bytes, kept: bytes, tile: Tile, place: Tile) -> tuple[Choice, ...]:
    at = next(at for at in range(0, len(row), HASH_BYTES) if row[at : at + HASH_BYTES] != kept[at : at + HASH_BYTES])
    entry = place.index * TILE_WIDTH + at // HASH_BYTES
    bundle = f"{place.path}: entry {entry} does not hash to its leaf"
    leaf = f"{tile.path}: the leaf of entry {entry} is not its hash"
    return Choice(_up(row), (leaf,)), Choice(_up(kept), (bundle,))


def scan_range(path: Path, first: int, last: int, size: int, story: bool) -> list[Scan]:
    """Scan bundles `first` to before `last`: one task of a worker process."""
    folder = LogFolder(path)
    return [scan_bundle(folder, index, size, story) for index in range(first, last)]


class Tree:
    """Climbs from leaf tiles to the root, checking every kept tile on the way.

    Args:
        first: the first bundle that is kept; tiles right of it are recomputed, what lies left is taken from tiles.
    """

    def __init__(self, folder: LogFolder, size: int, first: int = 0) -> None:
        self._folder, self._size = folder, size
        self._rows: list[list[tuple[Choice, ...]]] = [[] for _ in levels(size)]
        self._next = [first >> (8 * level) for level in range(len(self._rows))]
        self._given: list[bytes] = [b"" for _ in self._rows]
        self._edge: dict[int, tuple[Choice, ...]] = {}
        self.damaged: list[str] = []
        for level in range(1, len(self._rows)):
            self._begin(level, first >> (8 * (level - 1)))

    def _begin(self, level: int, start: int) -> None:
        """Take what lies left of the first recomputed hash from the tile that is kept."""
        self._next[level] = start // TILE_WIDTH
        if start % TILE_WIDTH:
            tile = tile_at(level, start // TILE_WIDTH, self._size)
            try:
                self._given[level] = self._folder.tile(tile)[: start % TILE_WIDTH * HASH_BYTES]
            except AuditError as error:
                self.damaged.append(_reason(tile.path, error))

    def add(self, scan: Scan) -> None:
        """Take the next bundle's leaf tile."""
        self.damaged.extend(scan.missing)
        if tile_at(0, scan.index, self._size).width == TILE_WIDTH:
            self._push(1, scan.choices)
        else:
            self._edge[0] = scan.choices

    def _push(self, level: int, child: tuple[Choice, ...]) -> None:
        self._rows[level].append(child)
        if len(self._given[level]) // HASH_BYTES + len(self._rows[level]) == TILE_WIDTH:
            self._close(level)

    def _close(self, level: int) -> None:
        """A row is complete: hold it against its tile and hand the readings up."""
        tile = tile_at(level, self._next[level], self._size)
        choices = self._judge(tile, self._given[level], self._rows[level])
        self._next[level] += 1
        self._rows[level], self._given[level] = [], b""
        if tile.width < TILE_WIDTH:
            self._edge[level] = choices
        else:
            self._push(level + 1, choices)

    def _judge(self, tile: Tile, given: bytes, children: list[tuple[Choice, ...]]) -> tuple[Choice, ...]:
        try:
            kept = self._folder.tile(tile)
        except AuditError as error:
            row, blame, _ = _settle(given, children, None)
            return (Choice(_up(row), (*blame, _reason(tile.path, error))),) if row else ()
        row, blame, wrong = _settle(given, children, kept)
        if not wrong:
            return (Choice(_up(kept), blame),)
        below = tile.level - 1
        first = tile.index * TILE_WIDTH + wrong[0]
        here = f"{tile.path}: hash {wrong[0]} is not the root of {Tile(below, first).path}"
        names = [Tile(below, tile.index * TILE_WIDTH + at).path for at in wrong]
        under = tuple(f"{name}: it and what lies under it do not lead to {tile.path}" for name in names)
        return Choice(_up(row), (*blame, here)), Choice(_up(kept), (*blame, *under))

    def finish(self, root: bytes) -> None:
        """Close the right edge and let the signed root decide what was still open."""
        for level in range(1, len(self._rows)):
            if self._rows[level] or self._given[level]:
                self._close(level)
        edges = [self._edge.get(level, ()) for level in reversed(range(len(self._rows))) if self._width(level)]
        best: Blame | None = None
        for choice in product(*edges):
            blame = tuple(one for part in choice for one in part.blame)
            if _edge_root(choice) == root and (best is None or len(blame) < len(best)):
                best = blame
        if best is None:
            self._accuse(edges)
        else:
            self.damaged.extend(best)

    def _width(self, level: int) -> int:
        return (self._size >> (8 * level)) % TILE_WIDTH

    def _accuse(self, edges: list[tuple[Choice, ...]]) -> None:
        blamed = {one: None for choices in edges for choice in choices for one in choice.blame}
        self.damaged.extend(blamed)
        if not self.damaged:
            text = "its root is not the root of these files; the log was rewritten, or its head is another log's"
            self.damaged.append(f"checkpoint: {text}")


def _settle(given: bytes, children: list[tuple[Choice, ...]], kept: bytes | None) -> tuple[bytes, Blame, list[int]]:
    """Join a row from its children's readings, each chosen to fit the tile where one fits; which places do not."""
    row = [given]
    wrong: list[int] = []
    blame: list[str] = []
    for at, choices in enumerate(children, len(given) // HASH_BYTES):
        stated = None if kept is None else kept[at * HASH_BYTES : (at + 1) * HASH_BYTES]
        fits = next((one for one in choices if one.hashes == stated), choices[0] if choices else None)
        if fits is None and stated is None:
            return b"", tuple(blame), wrong
        if fits is not None and stated is not None and fits.hashes != stated:
            wrong.append(at)
        blame.extend(fits.blame if fits else ())
        row.append(fits.hashes if fits else stated or b"")
    return b"".join(row), tuple(blame), wrong


def _edge_root(choices: tuple[Choice, ...]) -> bytes:
    """The root over the partial tiles of all levels, highest first."""
    pieces = [piece for choice in choices for piece in pieces_of(choice.hashes)]
    return fold(pieces) if pieces else EMPTY_ROOT


def check_leftovers(folder: LogFolder, size: int, files: Iterator[tuple[str, Tile | None]]) -> Iterator[str]:
    """Partial tiles of earlier sizes must be the beginnings of the present ones; names what is not."""
    for path, tile in files:
        if tile is None:
            continue
        present = max(0, min(TILE_WIDTH, level_size(size, tile.level) - tile.index * TILE_WIDTH))
        if tile.width >= present or tile.width == TILE_WIDTH:
            continue
        try:
            if _begins(folder, tile, present):
                continue
            yield f"{path}: it is not the beginning of {Tile(tile.level, tile.index, present).path}"
        except NotFound:
            continue
        except AuditError as error:
            yield _reason(path, error)


def _begins(folder: LogFolder, tile: Tile, present: int) -> bool:
    if tile.level == ENTRIES:
        return folder.bundle(tile.index, tile.width) == folder.bundle(tile.index, present)[: tile.width]
    whole = folder.tile(Tile(tile.level, tile.index, present))
    return folder.tile(tile) == whole[: tile.width * HASH_BYTES]
