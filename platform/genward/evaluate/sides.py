"""The tables of a judgement as numbers, and how much work it may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genward.data.readers import as_numbers
from genward.data.schema import Column, Schema

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
_SIGNIFICANT = 9  # digits by which two numbers are the same where the schema states no grid


@dataclass(frozen=True)
class Settings:
    """Bounds of the work, rows drawn at random where there are more; fewer rows make wider intervals, never bias.

    Args:
        rows: of each kind that a classifier or a regression learns from.
        near: rows whose neighbours are looked for.
        against: training rows among which the nearest is looked for.
        pairs: pairs of columns.
        resamples: of each bootstrap.
        overlap: what to do when held-out rows are training rows beyond what repeated rows explain.
    """

    rows: int = 8_000
    near: int = 2_000
    against: int = 20_000
    pairs: int = 100
    resamples: int = 200
    folds: int = 5
    overlap: Literal["refuse", "name"] = "refuse"
    seed: int = 20_260_101


@dataclass(frozen=True)
class Sides:
    """Training, held-out and synthetic rows, each (rows, columns) float64 as `features` gives them.

    `known` is False when nobody gave training rows: `train` then is the other half of the real rows, good for
    references, and nothing can be said about memory.
    """

    schema: Schema
    train: Floats
    test: Floats
    made: Floats
    settings: Settings
    known: bool = True

    def some(self, rows: Floats, n: int) -> Floats:
        """n rows drawn without replacement, the same ones every time; all of them if there are no more."""
        if len(rows) <= n:
            return rows
        return rows[np.random.default_rng(self.settings.seed).permutation(len(rows))[:n]]

    @cached_property
    def twin(self) -> Floats:
        """As many training rows as there are synthetic ones, if there are: real rows in their place."""
        return self.some(self.train, len(self.made))

    def draws(self, n: int, m: int, times: int | None = None) -> Iterator[tuple[Rows, Rows]]:
        """Rows of two resampled tables, n of n and m of m, over and over."""
        rng = np.random.default_rng(self.settings.seed)
        for _ in range(times or self.settings.resamples):
            yield rng.integers(n, size=n), rng.integers(m, size=m)


def features(table: pa.Table, schema: Schema) -> Floats:
    """Columns as float64 (N, columns): numbers as they are, choices as codes, NaN for missing."""
    return np.column_stack([_numbers(table[column.name], column) for column in schema.columns])


def _numbers(values: pa.ChunkedArray, column: Column) -> Floats:
    array = values.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    if pa.types.is_dictionary(array.type):
        array = array.cast(pa.string())
    if column.kind == "categorical":
        array = pc.index_in(array, value_set=pa.array(column.categories, pa.string())).cast(pa.float64())
    elif column.kind == "boolean":
        array = array.cast(pa.int8()).cast(pa.float64())
    else:
        array = as_numbers(array)
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float64)


def keys(rows: Floats, schema: Schema) -> NDArray[np.void]:
    """One value a row, equal for rows that are equal in every column: on the column's grid, or in nine digits.

    A number that was computed and one that was read from text may differ in the last bit and still be a copy; so may
    one that was rounded to the grid, as generated ones are, and one that was not.
    """
    grids = [_on_grid(rows[:, i], column) for i, column in enumerate(schema.columns)]
    whole = np.ascontiguousarray(np.column_stack(grids) + 0.0)  # -0 is 0
    found: NDArray[np.void] = whole.view(np.dtype((np.void, whole.shape[1] * whole.itemsize)))[:, 0]
    return found


def _on_grid(values: Floats, column: Column) -> Floats:
    there = np.where(np.isnan(values), 0.0, values)
    if not column.is_number:
        found = there
    elif column.step or column.kind != "numeric":
        found = np.rint(there / column.grid)
    else:
        digits = column.digits or _SIGNIFICANT
        unit = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(there), 1e-290))) + 1 - digits)
        found = np.rint(there / unit) * unit
    return np.where(np.isnan(values), np.inf, found)
