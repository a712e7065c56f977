"""The table of a release: slots with k candidates, declared cells, tenants' walks, and pages of them.

Row id = slot * k + candidate. Cells are declared at release and never made by a request; each slot belongs to one,
drawn with the pool key by the cells' shares. A walk is a tenant's own order over the slots of the cells asked for; a
page examines slots of a walk until n rows pass its predicate or the supply ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genward import noise
from genward.contracts import Rows
from genward.errors import IntegrityError, UsageError
from genward.table_predicate import Predicate

__all__ = ["Cell", "PageRows", "Predicate", "Slots", "Table", "Walk", "joined", "scan"]

Slots = NDArray[np.int64]
_Inside = Callable[[NDArray[Any]], NDArray[np.bool_]]
LARGEST = 1 << 48  # slots of a table without a pool; row ids stay far inside int64
SORTED = 1_000_000  # up to here an order is sorted words, above it is a Feistel permutation
_ROUNDS = 8
_SPAN = 1 << 12  # positions of a Feistel walk looked at together


@dataclass(frozen=True, slots=True)
class Cell:
    """A declared combination of condition values and its share of the slots.

    where[column] is ("in", (category, ...)) or ("between", low, high, u_low, u_high): a bin of a numeric column with
    its ends in the column's unit, and the same ends as the codec encodes them.
    """

    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    share: float = 1.0


@dataclass(frozen=True)
class Table:
    """S slots with k candidates each. `slots` None: no pool, the tenant enters the key and slots run 0, 1, 2, ...

    `block` rows are computed together, always whole, and hold whole slots. `segments` are the sizes by which S grew;
    a receipt names how many of them there were.
    """

    slots: int | None
    candidates: int = 1
    block: int = 256
    cells: tuple[Cell, ...] = ()
    segments: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", tuple(self.cells))
        grown = tuple(self.segments) or ((self.slots,) if self.slots else ())
        object.__setattr__(self, "segments", grown)
        if self.slots is not None and (self.slots < 1 or min(grown) < 1 or sum(grown) != self.slots):
            raise UsageError(f"a pool of {self.slots} slots cannot be made of segments {list(grown)}")
        if self.slots is not None and self.slots > LARGEST:
            raise UsageError(f"a pool of {self.slots} slots is too large", remedy=f"give at most {LARGEST}, or none")
        if self.candidates < 1 or self.block < 1 or self.block % self.candidates:
            raise UsageError(f"a block of {self.block} rows does not hold whole slots of {self.candidates} candidates")
        shares = [cell.share for cell in self.cells]
        if not (all(0 <= s < float("inf") for s in shares) and (not shares or sum(shares) > 0)):
            raise UsageError("shares of cells must be finite, not negative, and not all zero")

    @property
    def slots_per_block(self) -> int:
        return self.block // self.candidates

    @cached_property
    def _ends(self) -> NDArray[np.float64]:
        shares = np.cumsum(np.array([cell.share for cell in self.cells], dtype=np.float64))
        ends: NDArray[np.float64] = shares / shares[-1]
        return ends[:-1]

    def cell_of(self, slots: NDArray[Any], key: bytes) -> NDArray[np.intp]:
        """Index of each slot's cell, shape (n,); 0 everywhere when none is declared."""
        if len(self.cells) < 2:
            return np.zeros(len(slots), dtype=np.intp)
        return np.searchsorted(self._ends, noise.uniform(key, slots, noise.CELL), side="right")

    def raised(self, slots: int) -> Table:
        """The same table with a segment appended, `slots` in all; old receipts still replay."""
        if self.slots is None or slots <= self.slots:
            raise UsageError(f"a pool of {self.slots} slots cannot be raised to {slots}")
        return replace(self, slots=slots, segments=(*self.segments, slots - self.slots))

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        cells = [{"where": {c: list(v) for c, v in cell.where.items()}, "share": cell.share} for cell in self.cells]
        shape = {"slots": self.slots, "candidates": self.candidates, "block": self.block}
        return {**shape, "cells": cells, "segments": list(self.segments)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | bytes | str) -> Table:
        """Raises IntegrityError when this is no table."""
        try:
            given = json.loads(data) if isinstance(data, (bytes, str)) else data
            cells = tuple(
                Cell({c: _frozen(v) for c, v in x["where"].items()}, float(x["share"])) for x in given["cells"]
            )
            return cls(given["slots"], given["candidates"], given["block"], cells, tuple(given["segments"]))
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise IntegrityError(f"the table cannot be read: {error}", where="table") from None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


class Walk:
    """A tenant's keyed order over the slots of some cells, of the first `segments` segments of a table.

    Each segment is permuted by itself, in order, so that a raised table begins with the walk it had. Positions wrap
    around. Without a pool, position p is slot p, whatever its cell: a page drops what lies outside `cells`.

    Args:
        table: the release's table.
        tenant_key: 16 bytes, label walk/<release>/<tenant>; without a pool it is not used.
        pool_key: 16 bytes; without a pool, the tenant's own.
        cells: indices of the cells to walk, None for all.
        segments: how many segments; None for all there are now.
        reach: of the walk over all cells, only the first so many positions; None for all. Whatever cells are asked
            for, a tenant then never meets a slot outside those.
    """

    def __init__(
        self,
        table: Table,
        tenant_key: bytes,
        pool_key: bytes,
        cells: Sequence[int] | frozenset[int] | None = None,
        segments: int | None = None,
        reach: int | None = None,
    ) -> None:
        self.table, self.reach = table, reach
        self.pool_key = pool_key
        self.cells = None if cells is None or len(table.cells) < 2 else tuple(sorted(set(cells)))
        self.segments = len(table.segments) if segments is None else segments
        if not 0 <= self.segments <= len(table.segments):
            raise UsageError(f"the table has {len(table.segments)} segments, not {segments}")
        self._empty = cells is not None and len(cells) == 0
        firsts = np.concatenate([[0], np.cumsum(table.segments, dtype=np.int64)]).tolist()
        sizes = table.segments[: self.segments]
        self._parts = [self._part(tenant_key, first, size) for first, size in zip(firsts, sizes, strict=False)]

    def _part(self, key: bytes, first: int, size: int) -> _Sorted | _Feistel:
        inside = self.inside if self._empty or self.cells is not None else None
        limit = size if self.reach is None else min(size, max(0, self.reach - first))
        return (_Sorted if size <= SORTED else _Feistel)(key, first, size, limit, inside)

    def inside(self, slots: NDArray[Any]) -> NDArray[np.bool_]:
        """Which slots belong to the walk's cells."""
        if self._empty:
            return np.zeros(len(slots), dtype=bool)
        if self.cells is None:
            return np.ones(len(slots), dtype=bool)
        return np.isin(self.table.cell_of(slots, self.pool_key), self.cells)

    @cached_property
    def length(self) -> int:
        """How many slots the walk has; LARGEST without a pool."""
        if self.table.slots is None:
            return 0 if self._empty else LARGEST if self.reach is None else self.reach
        return sum(part.length for part in self._parts)

    def slots(self, start: int, count: int) -> Slots:
        """Slots at positions start .. start + count - 1, wrapping around; shape (count,), empty if the walk is."""
        if start < 0 or count < 0:
            raise UsageError(f"positions {start} + {count} are not in any walk")
        if self.length == 0:
            return np.empty(0, dtype=np.int64)
        if self.table.slots is None:
            return np.arange(start, start + count, dtype=np.int64) % self.length
        if len(self._parts) == 1 and isinstance(self._parts[0], _Sorted) and start + count <= self.length:
            return self._parts[0].take(start, count)
        pieces, at = [np.empty(0, dtype=np.int64)], start % self.length
        while count:
            piece = self._piece(at, count)
            pieces.append(piece)
            count -= len(piece)
            at = (at + len(piece)) % self.length
        return np.concatenate(pieces)

    def _piece(self, at: int, count: int) -> Slots:
        for part in self._parts:
            if at < part.length:
                return part.take(at, min(count, part.length - at))
            at -= part.length
        raise UsageError("the position lies behind the walk")


class _Sorted:
    """Order of one segment: argsort of 64-bit words, .07 ms for 1,000 slots, computed once."""

    def __init__(self, key: bytes, first: int, size: int, limit: int, inside: _Inside | None) -> None:
        self._given = key, first, size, limit, inside

    @cached_property
    def order(self) -> Slots:
        key, first, size, limit, inside = self._given
        slots = np.arange(first, first + size, dtype=np.int64)
        pairs = noise.words(key, slots, noise.WALK, 0, 2).astype(np.uint64)
        order = slots[np.argsort(pairs[:, 0] << np.uint64(32) | pairs[:, 1], kind="stable")][:limit]
        return order if inside is None else order[inside(order)]

    @property
    def length(self) -> int:
        return len(self.order)

    def take(self, start: int, count: int) -> Slots:
        return self.order[start : start + count]


class _Feistel:
    """Order of one large segment, position by position: a balanced Feistel network on 2h bits walked in cycles until it
    falls inside the segment (J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002).

    Restricted to cells, positions are counted span by span and the counts are kept.
    """

    def __init__(self, key: bytes, first: int, size: int, limit: int, inside: _Inside | None) -> None:
        self._key, self._first, self._size, self._limit, self._inside = key, first, size, limit, inside
        self._half = np.uint64((size - 1).bit_length() + 1 >> 1)
        self._mask = np.uint64((1 << int(self._half)) - 1)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        spans = range(0, self._limit, _SPAN)
        return np.cumsum([len(self._span(i)) for i in range(len(spans))], dtype=np.int64)

    @property
    def length(self) -> int:
        if self._inside is None or not self._limit:
            return self._limit
        return int(self._ends[-1])

    def take(self, start: int, count: int) -> Slots:
        if self._inside is None:
            return self._at(start, start + count)
        pieces = [np.empty(0, dtype=np.int64)]
        index = int(np.searchsorted(self._ends, start, side="right"))
        skip = start - (int(self._ends[index - 1]) if index else 0)
        while count:
            piece = self._span(index)[skip : skip + count]
            pieces.append(piece)
            count, skip, index = count - len(piece), 0, index + 1
        return np.concatenate(pieces)

    def _span(self, index: int) -> Slots:
        slots = self._at(index * _SPAN, min((index + 1) * _SPAN, self._limit))
        return slots if self._inside is None else slots[self._inside(slots)]

    def _at(self, low: int, high: int) -> Slots:
        return self._permuted(np.arange(low, high, dtype=np.uint64)).astype(np.int64) + self._first

    def _permuted(self, at: NDArray[np.uint64]) -> NDArray[np.uint64]:
        out = self._round_trip(at)
        outside = np.flatnonzero(out >= self._size)
        while len(outside):
            out[outside] = self._round_trip(out[outside])
            outside = outside[out[outside] >= self._size]
        return out

    def _round_trip(self, at: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = at >> self._half, at & self._mask
        for step in range(1, _ROUNDS + 1):
            mixed = noise.words(self._key, right, noise.WALK, step, 1)[:, 0]
            left, right = right, left ^ (mixed & self._mask)
        return left << self._half | right


class PageRows(NamedTuple):
    """A page: rows that passed, where it began, how many slots were examined, and whether the supply ended first."""

    rows: Rows
    start: int
    scanned: int
    exhausted: bool


def scan(
    walk: Walk,
    start: int,
    n: int,
    fetch: Callable[[Slots], Rows],
    passes: Callable[[Rows], NDArray[np.bool_]] | None = None,
    limit: int | None = None,
) -> PageRows:
    """Examine slots from a position until n rows pass, the walk has been seen once, or `limit` slots were examined.

    The slot of the n-th row is the last one examined, so any split of a page gives the same rows.

    Args:
        walk: the order to follow; start is taken modulo its length.
        start: first position.
        n: rows wanted.
        fetch: one chosen row for each slot, in order.
        passes: which rows the predicate keeps; None keeps all.
        limit: most slots to examine; when it is reached, `exhausted` is true.
    """
    supply = walk.length if limit is None else min(walk.length, limit)
    start = start % walk.length if walk.length else 0
    found: list[Rows] = []
    scanned = have = 0
    while have < n and scanned < supply:
        rows = fetch(walk.slots(start + scanned, _ahead(n, have, scanned, supply)))
        keep = _keep(walk, rows, passes)
        places = np.flatnonzero(keep)[: n - have]
        full = len(places) == n - have
        found.append(_take(rows, places))
        scanned += int(places[-1]) + 1 if full else len(rows)
        have += len(places)
    return PageRows(joined(found) if found else fetch(np.empty(0, dtype=np.int64)), start, scanned, have < n)


def _ahead(n: int, have: int, scanned: int, supply: int) -> int:
    """How many slots to look at next: what the yield so far asks for, and a little more."""
    missing = n - have
    guess = missing if not scanned else int(1.2 * missing * scanned / max(have, 1)) + 8
    return min(max(guess, 1), 1 << 16, supply - scanned)


def _keep(walk: Walk, rows: Rows, passes: Callable[[Rows], NDArray[np.bool_]] | None) -> NDArray[np.bool_]:
    keep = np.ones(len(rows), dtype=bool) if passes is None else passes(rows)
    return keep & walk.inside(rows.slots) if walk.table.slots is None else keep


def _take(rows: Rows, places: NDArray[Any]) -> Rows:
    if len(places) == len(rows):
        return rows
    return Rows(rows.numbers[places], rows.codes[places], rows.slots[places])


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other; at least one part."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        np.concatenate([p.numbers for p in parts]),
        np.concatenate([p.codes for p in parts]),
        np.concatenate([p.slots for p in parts]),
    )
