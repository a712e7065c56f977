"""Tiles and entry bundles, C2SP tlog-tiles: which files a log of a given size has, and what is in them.

A tile holds up to 256 neighbouring hashes of one level; tile level l holds roots of perfect subtrees of 256**l
leaves. A bundle holds up to 256 entries. A partial one is named by its width.

    tile/<level>/<index>[.p/<width>]        tile/entries/<index>[.p/<width>]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from genward_audit.errors import FormatError, UsageError
from genward_audit.merkle import HASH_BYTES, MAX_SIZE

TILE_WIDTH = 256
TILE_BYTES = TILE_WIDTH * HASH_BYTES
MAX_ENTRY = 65_535
MAX_LEVEL = 63
ENTRIES = -1  # the level under which bundles are counted

_PATH = re.compile(r"tile/(entries|0|[1-9]\d?)/((?:x\d{3}/)*)(\d{3})(?:\.p/([1-9]\d{0,2}))?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """The place of one file: a tile of `level`, or a bundle where level is `ENTRIES`; width 256 is full."""

    level: int
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        if not (ENTRIES <= self.level <= MAX_LEVEL and 0 <= self.index <= MAX_SIZE and 0 < self.width <= TILE_WIDTH):
            raise UsageError(f"no tile at level {self.level}, index {self.index}, width {self.width}")

    @property
    def path(self) -> str:
        """Where the file lies, relative to the log's folder."""
        level = "entries" if self.level == ENTRIES else str(self.level)
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{_index_path(self.index)}{partial}"

    @property
    def full(self) -> Tile:
        """The same place at full width: what a reader tries when a partial tile is gone."""
        return Tile(self.level, self.index)


def _index_path(index: int) -> str:
    """1234067 is x001/x234/067."""
    text = f"{index % 1000:03d}"
    while index := index // 1000:
        text = f"x{index % 1000:03d}/{text}"
    return text


def tile_path(level: int, index: int, width: int | None = None) -> str:
    """Path of a tile; `width` None or 256 is full."""
    if level < 0:
        raise UsageError(f"no tile at level {level}")
    return Tile(level, index, width or TILE_WIDTH).path


def entries_path(index: int, width: int | None = None) -> str:
    """Path of an entry bundle; `width` None or 256 is full."""
    return Tile(ENTRIES, index, width or TILE_WIDTH).path


def parse_path(path: str) -> Tile:
    """The tile a path names; raises FormatError. Each tile has exactly one path."""
    match = _PATH.fullmatch(path)
    if not match:
        raise FormatError("not a path of a tile", where=path[:200])
    level, groups, last, width = match.groups()
    index = int(groups.replace("x", "").replace("/", "") + last)
    if index > MAX_SIZE or (width and int(width) >= TILE_WIDTH) or (level != "entries" and int(level) > MAX_LEVEL):
        raise FormatError("not a path of a tile", where=path[:200])
    tile = Tile(ENTRIES if level == "entries" else int(level), index, int(width or TILE_WIDTH))
    if tile.path != path:
        raise FormatError("a tile's path has needless zeroes", where=path[:200])
    return tile


def encode_entries(entries: Sequence[bytes]) -> bytes:
    """A bundle: each entry as its length, two bytes big-endian, and its bytes."""
    if any(len(entry) > MAX_ENTRY for entry in entries):
        raise FormatError(f"an entry has at most {MAX_ENTRY} bytes")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def decode_entries(data: bytes) -> list[bytes]:
    """The entries of a bundle; raises FormatError where one is cut short."""
    entries: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        if at > end or start > end:
            raise FormatError(f"entry {len(entries)} of a bundle is cut short")
        entries.append(data[start:at])
    return entries


def level_size(size: int, level: int) -> int:
    """How many hashes tile level `level` (or entries) has in a log of `size`."""
    return size if level == ENTRIES else size >> (8 * level)


def levels(size: int) -> range:
    """Tile levels that exist in a log of `size`."""
    return range((size.bit_length() + 7) // 8)


def tile_at(level: int, index: int, size: int) -> Tile:
    """The tile as wide as a log of `size` has it; raises UsageError where it has none."""
    return Tile(level, index, max(0, min(TILE_WIDTH, level_size(size, level) - index * TILE_WIDTH)))


def tiles_of(size: int) -> Iterator[Tile]:
    """Every tile and bundle of a log of `size`: levels upwards, then bundles."""
    yield from new_tiles(0, size)


def new_tiles(old: int, new: int) -> Iterator[Tile]:
    """Tiles and bundles that a log of size `new` has and one of size `old` has not (or not as wide)."""
    if not 0 <= old <= new:
        raise UsageError(f"a log does not shrink from {old} to {new}")
    for level in (*levels(new), ENTRIES):
        before, after = level_size(old, level), level_size(new, level)
        if after > before:
            for index in range(before // TILE_WIDTH, (after + TILE_WIDTH - 1) // TILE_WIDTH):
                yield tile_at(level, index, new)


def check_tile(data: bytes, tile: Tile) -> bytes:
    """A tile's bytes if they have the length its width asks for; raises FormatError."""
    if len(data) != tile.width * HASH_BYTES:
        raise FormatError(f"a tile of {tile.width} hashes has {tile.width * HASH_BYTES} bytes, not {len(data)}")
    return data


def tile_of_node(level: int, index: int) -> tuple[int, int]:
    """(tile level, tile index) of the tile from which the node at tree level `level` is computed."""
    return level // 8, (index << level % 8) // TILE_WIDTH


def node_from_tile(data: bytes, level: int, index: int) -> bytes:
    """Hash of the node (tree level, index) from the bytes of its tile, at least as wide as the node needs."""
    count = 1 << level % 8
    start = (index * count % TILE_WIDTH) * HASH_BYTES
    part = data[start : start + count * HASH_BYTES]
    if len(part) != count * HASH_BYTES:
        raise FormatError(f"the tile is too narrow for node {index} of level {level}")
    return subtree_root(part)


def subtree_root(hashes: bytes) -> bytes:
    """Root over 1, 2, 4 ... 256 joined hashes of one level."""
    while len(hashes) > HASH_BYTES:
        pairs = range(0, len(hashes), 2 * HASH_BYTES)
        hashes = b"".join([sha256(b"\x01" + hashes[at : at + 64]).digest() for at in pairs])
    return hashes


def pieces_of(row: bytes) -> list[bytes]:
    """Roots of the perfect subtrees over a partial tile's joined hashes, largest first: a part of the right edge."""
    roots, at, count = [], 0, len(row) // HASH_BYTES
    while count:
        step = 1 << (count.bit_length() - 1)
        roots.append(subtree_root(row[at : at + step * HASH_BYTES]))
        at, count = at + step * HASH_BYTES, count - step
    return roots
