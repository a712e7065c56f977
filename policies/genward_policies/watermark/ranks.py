"""How many rising edges lie at or below a number: what `numpy.searchsorted(edges, values, "right")` says, by a table.

A binary search mispredicts half of its branches, some 50 ns a value. A map that never falls takes a value to one of a
few thousand places instead; a table knows how many edges lie in earlier places, and as many comparisons as edges share
a place do the rest. Edges and values go through the same arithmetic, so rounding in the map cannot change an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SIZES = (1024, 4096, 16384)  # places of a table; the smallest that keeps edges apart stays in the cache
_ROUNDS = 4  # comparisons a value above which a search is as quick
_FEW = 256  # values below which a search is as quick

Floats = NDArray[np.float64]
Ranks = NDArray[np.intp]
Map = Callable[[Floats], Ranks]  # values to places from 0; NaN to any


@dataclass(frozen=True)
class Even:
    """Places of equal width: for edges that lie evenly."""

    low: float
    scale: float
    top: int

    def __call__(self, values: Floats) -> Ranks:
        with np.errstate(over="ignore"):
            found = values - self.low
            found *= self.scale
        np.fmax(found, 0, out=found)  # takes NaN away, unlike maximum
        np.fmin(found, self.top, out=found)
        return found.astype(np.intp)


@dataclass(frozen=True)
class Bits:
    """Places by the first bits of a positive float64, that is by its logarithm, nearly: for edges of a long tail."""

    shift: int
    base: int
    top: int

    def __call__(self, values: Floats) -> Ranks:
        found = np.ascontiguousarray(values).view(np.int64) >> self.shift  # below 0 for what is negative
        found -= self.base
        np.maximum(found, 0, out=found)
        np.minimum(found, self.top, out=found)
        return found.astype(np.intp, copy=False)


class Table:
    """Ranks among some edges, one more than searchsorted says, and 0 for NaN."""

    def __init__(self, edges: Floats) -> None:
        self._edges = edges
        self._next = np.concatenate([[np.nan], edges, [np.nan]])  # by rank: the edge that comes next; NaN ends it
        self._map, self._first, self._rounds = _best(edges)

    def __call__(self, values: Floats) -> Ranks:
        """Ranks of values (n,)."""
        if self._first is None or self._map is None or len(values) < _FEW:
            found = np.searchsorted(self._edges, values, side="right") + 1
        else:
            found = self._first.take(self._map(values))
            for _ in range(self._rounds):
                found += self._next.take(found) <= values
        missing = np.isnan(values)
        if missing.any():
            found[missing] = 0
        return found


def _best(edges: Floats) -> tuple[Map | None, Ranks | None, int]:
    """(map, rank before each place, most edges in a place); no map where none keeps edges apart."""
    best: tuple[Map | None, Ranks | None, int] = None, None, _ROUNDS + 1
    for each in _maps(edges):
        counts = np.bincount(each(edges))
        if counts.max() < best[2]:
            best = each, np.concatenate([[0], np.cumsum(counts)[:-1]]) + 1, int(counts.max())
        if best[2] == 1:
            break
    return best


def _maps(edges: Floats) -> Iterator[Map]:
    if not len(edges) or not np.isfinite(edges).all():
        return
    low, high = float(edges[0]), float(edges[-1])
    for size in _SIZES:
        scale = (size - 1) / (high - low) if 0 < high - low < np.inf else 0.0
        if 0 < scale < np.inf:
            yield Even(low, scale, int((high - low) * scale))
        if low > 0:
            yield _bits(low, high, size)


def _bits(low: float, high: float, size: int) -> Bits:
    first, last = (int(np.float64(end).view(np.int64)) for end in (low, high))
    shift = 1  # of 0 the difference of two places could overflow
    while (last >> shift) - (first >> shift) >= size:
        shift += 1
    return Bits(shift, first >> shift, (last >> shift) - (first >> shift))
