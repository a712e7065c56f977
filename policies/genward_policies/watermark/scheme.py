"""Schemes: hashes of quantised columns, sealed at release as `watermark.json`.

A number is put into one of LEVELS levels of equal share by the generator's own rows; a hash joins levels to bins, with
a random offset, of some columns. What it gives for a row is its *cell*. Bins are never fitted to a suspect file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genward.errors import CheckFailed, IntegrityError
from genward.strictjson import canonical, parse
from genward_policies.watermark.ranks import Table

FILE = "watermark.json"
FORMAT = "genward.watermark/1"
LEVELS = 240  # of a number column; bins are made of whole levels
MOST_WORDS = 4095  # categories of a column that takes part
MOST_COLUMNS = 6  # of a hash
_HASH = 48  # bits of a cell below its hash's number
_LITTLE = 0.3  # bits that a column must add to a hash
_STEADY = 4  # a column that keeps half of its bins under attack is worth a sixteenth
_LIMIT = 64 << 20
_FEW, _WIDE = 256, 1 << 20  # rows that are looked up at one stroke, in a table of so many numbers

Levels = NDArray[np.intp]  # (n, columns): 0 is missing
Cells = NDArray[np.uint64]  # (n, hashes)


@dataclass(frozen=True)
class Axis:
    """A column: rising edges between the levels of a number, or how many categories a choice has."""

    name: str
    edges: tuple[float, ...] = ()
    words: int = 0

    @property
    def size(self) -> int:
        """Levels, missing among them."""
        return self.words + 1 if self.words else LEVELS + 1

    def levels(self, values: NDArray[Any]) -> NDArray[np.intp]:
        """Levels of numbers (NaN is missing) or of codes (-1 is missing)."""
        if self.words:
            return np.clip(values.astype(np.intp), -1, self.words - 1) + 1
        return self._table(np.asarray(values, dtype=np.float64))

    @cached_property
    def _table(self) -> Table:
        return Table(np.array(self.edges, dtype=np.float64))


@dataclass(frozen=True)
class Scheme:
    """A sealed scheme. `hashes[t]` are places of columns in `axes`, `offsets[t]` their offsets in levels; `rows` is how
    many public rows the frequencies of cells are counted from."""

    axes: tuple[Axis, ...]
    hashes: tuple[tuple[int, ...], ...]
    offsets: tuple[tuple[int, ...], ...]
    bins: int
    candidates: int
    payload: str
    rows: int
    at_fpr: float

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    def cells(self, levels: Levels, hashes: Sequence[int] | None = None) -> Cells:
        """The cell of each row in each hash, or in some of them; equal cells are equal numbers."""
        if hashes is None and len(levels) <= _FEW and self._few:
            return np.asarray(self._wide.take(levels + self._starts, axis=0).sum(axis=1))
        chosen = range(len(self.hashes)) if hashes is None else hashes
        columns = np.ascontiguousarray(levels.T)
        out = np.empty((len(chosen), len(levels)), dtype=np.uint64)
        for place, number in enumerate(chosen):
            (first, table), *rest = self._tables[number]
            table.take(columns[first], out=out[place], mode="clip")
            for column, table in rest:
                out[place] += table.take(columns[column], mode="clip")
        return out.T

    @cached_property
    def _tables(self) -> list[list[tuple[int, NDArray[np.uint64]]]]:
        """What each level of each column adds to a cell."""
        return [self._of_hash(number) for number in range(len(self.hashes))]

    @cached_property
    def _few(self) -> bool:
        """Whether `_wide` is small."""
        return sum(axis.size for axis in self.axes) * len(self.hashes) <= _WIDE

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        """Where the levels of each column begin in `_wide`."""
        return np.cumsum([0, *(axis.size for axis in self.axes)])[:-1]

    @cached_property
    def _wide(self) -> NDArray[np.uint64]:
        """The same by (level of a column, hash), 0 where a hash lacks the column: few rows at one stroke."""
        found = np.zeros((sum(axis.size for axis in self.axes), len(self.hashes)), dtype=np.uint64)
        for number, tables in enumerate(self._tables):
            for column, table in tables:
                start = self._starts[column]
                found[start : start + len(table), number] = table
        return found

    def _of_hash(self, number: int) -> list[tuple[int, NDArray[np.uint64]]]:
        stride, found = 1, []
        for column, offset in zip(self.hashes[number], self.offsets[number], strict=True):
            axis = self.axes[column]
            bins = np.arange(axis.size) if axis.words else _bins(self.bins, offset)
            found.append((column, (stride * bins).astype(np.uint64)))
            stride *= int(bins.max()) + 1
        found[0][1][:] += np.uint64(number << _HASH)
        return found

    def to_json(self) -> bytes:
        """What `from_json` reads back, canonical."""
        axes = [
            {"name": a.name, "edges": list(a.edges)} if a.edges else {"name": a.name, "words": a.words}
            for a in self.axes
        ]
        plain = {"format": FORMAT, "scheme": "select", "axes": axes, "hashes": self.hashes, "offsets": self.offsets}
        numbers = {"bins": self.bins, "candidates": self.candidates, "rows": self.rows, "at_fpr": self.at_fpr}
        return canonical({**plain, **numbers, "payload": self.payload})

    @classmethod
    def from_json(cls, data: bytes) -> Scheme:
        """Raises IntegrityError when this is no scheme."""
        try:
            given = parse(data, FILE, _LIMIT)
            if given["format"] != FORMAT or given["scheme"] != "select":
                raise ValueError(f"format {given['format']!r}, scheme {given['scheme']!r}")
            return _checked(_read(given))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, json.JSONDecodeError) as error:
            raise IntegrityError(f"the scheme cannot be read: {error}", where=FILE) from None


def _read(given: Mapping[str, Any]) -> Scheme:
    axes = tuple(
        Axis(str(a["name"]), tuple(float(e) for e in a.get("edges", ())), int(a.get("words", 0))) for a in given["axes"]
    )
    hashes, offsets = (tuple(tuple(int(c) for c in row) for row in given[name]) for name in ("hashes", "offsets"))
    numbers = int(given["bins"]), int(given["candidates"])
    return Scheme(axes, hashes, offsets, *numbers, str(given["payload"]), int(given["rows"]), float(given["at_fpr"]))


def _checked(scheme: Scheme) -> Scheme:
    """ValueError for what no scheme can be."""
    for axis in scheme.axes:
        rising = all(a < b for a, b in zip(axis.edges, axis.edges[1:], strict=False))
        if (
            bool(axis.words) == bool(axis.edges)
            or not 0 <= axis.words <= MOST_WORDS
            or not rising
            or len(axis.edges) >= LEVELS
        ):
            raise ValueError(f"column {axis.name!r}")
    places = range(len(scheme.axes))
    for columns, offsets in zip(scheme.hashes, scheme.offsets, strict=True):
        if (
            not 0 < len(columns) <= MOST_COLUMNS
            or len(columns) != len(offsets)
            or any(c not in places for c in columns)
        ):
            raise ValueError("a hash")
    if scheme.bins < 2 or LEVELS % scheme.bins or not 2 <= scheme.candidates <= 64 or not 0 < scheme.at_fpr < 1:
        raise ValueError("bins, candidates or at_fpr")
    if scheme.payload not in ("tenant", "release") or scheme.rows < 1 or not 0 < len(scheme.hashes) <= 1 << 15:
        raise ValueError("payload, rows or hashes")
    return scheme


# Making one


def axes_of(numbers: Mapping[str, NDArray[np.float64]], words: Mapping[str, NDArray[np.int32]]) -> tuple[Axis, ...]:
    """Columns that can carry something, by the generator's own rows; one with a single value cannot."""
    found = [Axis(name, _edges(values)) for name, values in numbers.items()]
    found += [Axis(name, words=int(codes.max()) + 1) for name, codes in words.items() if len(np.unique(codes)) > 1]
    return tuple(axis for axis in found if axis.edges or 0 < axis.words <= MOST_WORDS)


def _edges(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Edges between levels of equal share, each half way down to the next lower value, so that rounding a value that
    many rows share does not move it across."""
    known = np.unique(values[~np.isnan(values)], return_counts=True)
    if len(known[0]) < 2:
        return ()
    distinct, ends = known[0], np.cumsum(known[1])
    targets = np.arange(1, LEVELS) / LEVELS * ends[-1]
    places = np.unique(np.searchsorted(ends, targets, side="right"))
    places = places[(places > 0) & (places < len(distinct))]
    middles = np.unique((distinct[places] + distinct[places - 1]) / 2)
    return tuple(middles.tolist())


def drawn(
    axes: Sequence[Axis],
    levels: Levels,
    bins: int,
    spread: int,
    hashes: int,
    rng: np.random.Generator,
    steady: NDArray[np.float64] | None = None,
) -> tuple[Any, Any]:
    """(hashes, offsets): each hash takes columns until two ordinary rows share its cell in one case of `spread`.

    Columns are used as often as they tell rows apart, and one that adds little beside those taken is passed over: a
    hash that needs few columns survives the loss of others. `levels` are rows of the release (n, axes); `steady` are
    the shares of rows that keep their bin of a column under attack: what does not is hardly used.
    """
    if len(axes) < 2:
        raise CheckFailed("fewer than two columns vary, and a mark needs two", remedy="release without `watermark`")
    told = np.array([_told(binned(levels[:, place], axis, bins, 0)) for place, axis in enumerate(axes)])
    worth = np.maximum(told * (1.0 if steady is None else steady**_STEADY), _LITTLE / 10)
    uses, found, offsets = np.zeros(len(axes)), list[tuple[int, ...]](), list[tuple[int, ...]]()
    for _ in range(hashes):
        places, shifts = _one(axes, levels, bins, spread, (uses + rng.random(len(axes))) / worth, rng)
        uses[list(places)] += 1
        found.append(places)
        offsets.append(shifts)
    return tuple(found), tuple(offsets)


def _one(
    axes: Sequence[Axis], levels: Levels, bins: int, spread: int, turn: NDArray[np.float64], rng: np.random.Generator
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """One hash: columns in their turn."""
    cells, told, size = np.zeros(len(levels), dtype=np.int64), 0.0, 1
    places, shifts = list[int](), list[int]()
    for place in np.argsort(turn).tolist():
        shift = int(rng.integers(0, LEVELS // bins))
        more = cells * axes[place].size + binned(levels[:, place], axes[place], bins, shift)
        more = np.unique(more, return_inverse=True)[1]
        now, size_now = _told(more), size * axes[place].size
        if size_now >= 1 << _HASH or now - told < _LITTLE:
            continue
        places, shifts, cells, told, size = [*places, place], [*shifts, shift], more, now, size_now
        if told >= np.log2(spread) or len(places) == MOST_COLUMNS:
            break
    return tuple(places), tuple(shifts)


def _told(cells: NDArray[Any]) -> float:
    """Bits by which two rows are told apart: minus the logarithm of the chance that they share a cell (Renyi)."""
    n, counts = len(cells), np.unique(cells, return_counts=True)[1].astype(np.float64)
    return float(-np.log2(max(float((counts * (counts - 1)).sum()) / (n * (n - 1)), 1 / n**2)))


def binned(levels: NDArray[np.intp], axis: Axis, bins: int, offset: int) -> NDArray[np.intp]:
    """The bins of levels; a choice keeps its codes."""
    return levels if axis.words else _bins(bins, offset)[levels]


def _bins(bins: int, offset: int) -> NDArray[np.intp]:
    """The bin of each level; missing stays 0."""
    found = (np.arange(LEVELS + 1) - 1 + offset) // (LEVELS // bins) + 1
    found[0] = 0
    return found
