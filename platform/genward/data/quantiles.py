"""The quantile transform of one column: monotone, piecewise linear, with knots evenly spaced in normal quantiles.

Even spacing makes decoding a multiplication and a look-up, with no search. Columns with significant digits are
interpolated on an asinh scale, so that relative precision holds over many decades; columns with few distinct values
are a staircase, so that no value between two of them is ever made.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genward.data.schema import Column
from genward.errors import DataError

KNOTS = 1025
_REACH = 4.0  # of a column whose law is declared
_LINEAR = 0.01  # of a log scale's minimum: asinh is a logarithm, to 2.5e-5, from there on
_NO_GRID = 1e-200  # a column without a step has one below this
FEW = 128  # up to so many distinct values a column is a staircase
Floats = NDArray[np.float64]
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Quantiles:
    """`table[i]` is the value, on the column's scale, at latent -reach + i * 2 reach / (knots - 1).

    `scale` 0: values as they are; else asinh(value / scale). `stairs`: nearest knot, not interpolated. `edges`: of a
    column whose cuts were declared, their shares in (0, 1).
    """

    reach: float
    scale: float
    stairs: bool
    table: tuple[float, ...]
    edges: tuple[float, ...] = ()

    @property
    def estimated(self) -> list[str]:
        return ["scale"] if self.scale else []

    @classmethod
    def fit(cls, column: Column, values: Floats) -> Quantiles:
        """Fit to present values; DataError when the column's precision does not survive."""
        reach = max(1.0, -_NORMAL.inv_cdf(0.5 / max(len(values), 2)))
        distinct, counts = np.unique(values, return_counts=True)
        if len(distinct) <= FEW:
            return cls(reach, 0.0, True, tuple(_stairs(distinct, counts, reach).tolist()))
        scale = _scale(values) if column.digits else 0.0
        found = cls(reach, scale, False, tuple(_knots(_scaled(values, scale), reach).tolist()))
        found._require_precision(column, distinct)
        return found

    @cached_property
    def knots(self) -> Floats:
        """`table` as an array (knots,), not falling."""
        return np.array(self.table, dtype=np.float64)

    @cached_property
    def latents(self) -> Floats:
        """Latent of each knot, (knots,)."""
        return np.linspace(-self.reach, self.reach, len(self.table))

    @classmethod
    def declared(cls, column: Column) -> Quantiles:
        """The law that a schema declares, from nothing else; DataError without bounds.

        Even between the bounds, or in the logarithm, or as much between two edges as between any others; integers of
        few values are a staircase. A grid's first and last value own as much as the rest; edges move between values.
        """
        low, high = _bounds(column)
        few = (high - low) / column.grid < FEW
        if few:
            values = np.arange(low, high + 0.5 * column.grid, column.grid)
            table = _stairs(values, _weights(values, _edges(column), column.scale), _REACH)
            found = cls(_REACH, 0.0, True, tuple(table.tolist()))
            return replace(found, edges=found._between(_edges(column)) if column.cuts else ())
        scale = _LINEAR * low if column.scale == "log" else 0.0
        out = _margin(column)
        ends = _scaled(np.array([low - min(out, 0.5 * low if scale else out), *_edges(column), high + out]), scale)
        found = cls(_REACH, scale, False, tuple(_knots(ends, _REACH).tolist()))
        return replace(found, edges=tuple(_NORMAL.cdf(z) for z in np.interp(ends[1:-1], *found._rising).tolist()))

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value."""
        return self._value(0), self._value(-1)

    @cached_property
    def cuts(self) -> tuple[float, ...]:
        """Shares in (0, 1) where the column may be cut: its declared edges, or between any two stairs."""
        return self.edges or (self._between() if self.stairs else ())

    def _between(self, edges: Sequence[float] = ()) -> tuple[float, ...]:
        """Shares at which one stair gives way to the next; with edges, of the steps across one only."""
        piece = np.searchsorted(np.array(edges), self.knots, side="right") if edges else self.knots
        at = np.flatnonzero(np.diff(piece) > 0)
        return tuple(_NORMAL.cdf(float(z)) for z in (self.latents[at] + self.latents[at + 1]) / 2)

    def encode(self, values: Floats, rng: np.random.Generator | None = None) -> NDArray[np.float32]:
        """Latents (n,) of values (n,); what several knots share gets its interval's middle, or a random place."""
        scaled = _scaled(values, self.scale)
        first = np.searchsorted(self.knots, scaled, side="left")
        last = np.searchsorted(self.knots, scaled, side="right") - 1
        if self.stairs:
            return self._place(*self._steps(scaled), rng)
        inside = np.interp(scaled, *self._rising)
        last = np.clip(last, 0, len(self.knots) - 1)
        shared = last > first
        low, high = self.latents[np.minimum(first, last)], self.latents[last]
        return np.where(shared, self._place(low, high, rng), inside).astype(np.float32)

    def decode(self, latents: NDArray[Any]) -> Floats:
        """Values (n,) of latents (n,), before rounding: what the decoder does in the graph, in numpy."""
        at = np.clip((np.asarray(latents, np.float64) + self.reach) / (2 * self.reach), 0, 1) * (len(self.table) - 1)
        if self.stairs:
            return self.knots[np.rint(at).astype(np.intp)]
        low = np.minimum(at.astype(np.intp), len(self.table) - 2)
        found: Floats = self.knots[low] + (at - low) * (self.knots[low + 1] - self.knots[low])
        return np.sinh(found) * self.scale if self.scale else found

    def cdf(self, value: float) -> float:
        """The share of a standard normal below a value's latent, for the bounds of a bin."""
        if value <= self._value(0):
            return 0.0
        if value >= self._value(-1):
            return 1.0
        return _NORMAL.cdf(float(self.encode(np.array([value]))[0]))

    def _value(self, knot: int) -> float:
        scaled = float(self.knots[knot])
        return float(np.sinh(scaled) * self.scale) if self.scale else scaled

    @cached_property
    def _rising(self) -> tuple[Floats, Floats]:
        """Knots without repeats and their latents; of an atom both ends, where it meets its neighbours."""
        keep = np.ones(len(self.knots), dtype=bool)
        same = np.diff(self.knots) <= 0
        keep[1:-1] = ~(same[:-1] & same[1:])
        knots, latents = self.knots[keep].copy(), self.latents[keep]
        twins = np.flatnonzero(np.diff(knots) <= 0) + 1
        knots[twins] = np.nextafter(knots[twins], np.inf)
        return knots, latents

    def _steps(self, scaled: Floats) -> tuple[Floats, Floats]:
        """Ends of the interval of the nearest stair, a quarter of a knot inside its edges."""
        values = np.unique(self.knots)
        near = values[np.abs(scaled[:, None] - values[None, :]).argmin(axis=1)]
        first = np.searchsorted(self.knots, near, side="left")
        last = np.searchsorted(self.knots, near, side="right") - 1
        half = 0.4 * (self.latents[1] - self.latents[0])
        return self.latents[first] - half, self.latents[last] + half

    def _place(self, low: Floats, high: Floats, rng: np.random.Generator | None) -> NDArray[np.float32]:
        """The middle of an interval in probability, or a random place of it."""
        below, above = (np.array([_NORMAL.cdf(z) for z in side]) for side in (low, high))
        share = 0.5 if rng is None else rng.random(len(low))
        middle = np.clip(below + share * (above - below), 1e-9, 1 - 1e-9)
        found = np.array([_NORMAL.inv_cdf(p) for p in middle])
        return np.asarray(np.clip(found, low, high), dtype=np.float32)

    def _require_precision(self, column: Column, values: Floats) -> None:
        """Refuse a grid that a value does not come back to."""
        back = self.decode(self.encode(values))
        if column.digits:
            unit = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(values), self.scale))) + 1 - column.digits)
        else:
            unit = np.full(len(values), column.grid)
            if column.grid < _NO_GRID:
                return
        off = np.abs(back - values) / unit
        worst = float(off.max())
        if worst > 1.0:
            row = int(off.argmax())
            raise DataError(
                f"{values[row]!r} comes back as {float(back[row])!r}: the precision is finer than a latent holds",
                where=f"column {column.name!r}",
                remedy=_coarser(column, worst),
            )

    def to_json(self) -> dict[str, Any]:
        plain = {"reach": self.reach, "scale": self.scale, "stairs": self.stairs, "table": list(self.table)}
        return {**plain, "edges": list(self.edges)} if self.edges else plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Quantiles:
        """Raises ValueError, KeyError or TypeError when this is no transform."""
        table = tuple(float(value) for value in data["table"])
        edges = tuple(float(value) for value in data.get("edges", ()))
        found = cls(float(data["reach"]), float(data["scale"]), bool(data["stairs"]), table, edges)
        if len(table) < 2 or not np.all(np.isfinite(found.knots)) or np.any(np.diff(found.knots) < 0):
            raise ValueError("a quantile table must be finite and must not fall")
        if not (0 < found.reach < 100 and 0 <= found.scale < np.inf):
            raise ValueError("reach and scale are out of range")
        if not all(a < b for a, b in itertools.pairwise((0.0, *edges, 1.0))):
            raise ValueError("edges must rise between 0 and 1")
        return found


def _bounds(column: Column) -> tuple[float, float]:
    low, high = column.bounds
    if low is None or high is None or not low < high:
        line = f"{{name: {column.name}, kind: {column.kind}, minimum: ..., maximum: ...}}"
        where, remedy = f"column {column.name!r}", f"declare its bounds in the schema: {line}"
        raise DataError("has no bounds, and none may be taken from protected rows", where=where, remedy=remedy)
    return low, high


def _weights(values: Floats, edges: Sequence[float], scale: str) -> Floats:
    """How much of the law each of few values owns."""
    if not edges:
        return 1 / values if scale == "log" else np.ones(len(values))
    piece = np.searchsorted(np.array(edges), values, side="right")
    found: Floats = 1 / np.bincount(piece)[piece]
    return found


def _margin(column: Column) -> float:
    """Half a step of the column's grid, by which its law reaches over its bounds."""
    return 0.0 if column.digits or column.grid < _NO_GRID else 0.5 * column.grid


def _edges(column: Column) -> tuple[float, ...]:
    """The declared edges, each moved down between two values of the grid: one on a value would cut through it."""
    if not (half := _margin(column)):
        return column.cuts
    moved = np.ceil(np.array(column.cuts) / column.grid - 1e-6) * column.grid - half
    return tuple(np.unique(moved).tolist())


def _coarser(column: Column, worst: float) -> str:
    if column.digits:
        return f"declare digits: {max(1, column.digits - int(np.ceil(np.log10(worst))))}"
    return f"declare step: {column.grid * 10 ** int(np.ceil(np.log10(worst))):g}"


def _scale(values: Floats) -> float:
    """Below this size the asinh scale is linear: the smallest 1 % of what is not zero."""
    sizes = np.abs(values[values != 0])
    return float(np.quantile(sizes, 0.01)) if len(sizes) else 1.0


def _scaled(values: Floats, scale: float) -> Floats:
    out: Floats = np.arcsinh(values / scale) if scale else np.asarray(values, dtype=np.float64)
    return out


def _knots(scaled: Floats, reach: float) -> Floats:
    """Quantiles of the data at evenly spaced normal quantiles; the ends are its minimum and maximum."""
    shares = np.array([_NORMAL.cdf(z) for z in np.linspace(-reach, reach, KNOTS)])
    shares = (shares - shares[0]) / (shares[-1] - shares[0])
    found: Floats = np.maximum.accumulate(np.quantile(scaled, shares))
    return found


def _stairs(distinct: Floats, counts: NDArray[Any], reach: float) -> Floats:
    """A staircase over the distinct values: each has knots in proportion to its share, and one at least."""
    edges = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    latents = np.array([_NORMAL.inv_cdf(p) for p in np.clip(edges, 1e-9, 1 - 1e-9)])
    places = np.rint((np.clip(latents, -reach, reach) + reach) / (2 * reach) * KNOTS).astype(int)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + 1)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - 1, KNOTS - (len(places) - 1 - i))
    places[0], places[-1] = 0, KNOTS
    found: Floats = np.repeat(distinct, np.diff(places))
    return found
