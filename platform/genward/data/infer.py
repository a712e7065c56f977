"""A first guess at a schema, for a person to edit."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genward.data.readers import as_numbers, plain
from genward.data.schema import LARGEST_STEPS, MOST_DIGITS, Column, Schema
from genward.errors import DataError

MOST_CATEGORIES = 64
_FEW = 0.5  # a text column with more distinct values than this share of its rows is free text or an identifier


def infer(table: pa.Table, where: str = "") -> Schema:
    """Kinds, bounds, grids and categories as the data shows them; free text and constant columns go to `ignore`."""
    if table.num_rows == 0:
        raise DataError("the table has no rows", where=where, remedy="give a table with data")
    columns, ignore = [], []
    for name in table.column_names:
        column = _column(name, plain(table[name].combine_chunks()))
        if column is None:
            ignore.append(name)
        else:
            columns.append(column)
    if not columns:
        remedy = "all are empty, constant, or free text; is it one row only, or are there no commas between values?"
        raise DataError("no column can be described", where=where, remedy=remedy)
    return Schema(columns=tuple(columns), ignore=tuple(ignore))


def _column(name: str, array: pa.Array) -> Column | None:
    if pa.types.is_nested(array.type) or pa.types.is_null(array.type) or pa.types.is_binary(array.type):
        return None  # no kind of column
    nullable = array.null_count > 0
    distinct = pc.count_distinct(array, mode="only_valid").as_py()
    if distinct < 2:
        return None
    if pa.types.is_boolean(array.type):
        return Column(name=name, kind="boolean", nullable=nullable)
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        return _moments(name, array, nullable)
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return _numbers(name, array, nullable)
    words = array.cast(pa.string())
    if distinct > MOST_CATEGORIES or distinct > _FEW * len(array) + 2:
        return None
    categories = sorted(value for value in pc.unique(words).to_pylist() if value is not None)
    return Column(name=name, kind="categorical", categories=tuple(categories), nullable=nullable)


def _moments(name: str, array: pa.Array, nullable: bool) -> Column:
    stamps = array.cast(pa.timestamp("us"))
    ends = pc.min_max(stamps).as_py()
    seconds = (ends["max"] - ends["min"]).total_seconds()
    steps = [step for step in (1, 60, 3600, 86400) if seconds / step <= LARGEST_STEPS]
    low, high = (ends[end].replace(microsecond=0).isoformat() for end in ("min", "max"))
    exact = as_numbers(stamps).drop_null().to_numpy()
    step = next((s for s in reversed(steps) if not np.any(exact % s)), steps[0])
    return Column(name=name, kind="datetime", minimum=low, maximum=high, step=step, nullable=nullable)


def _numbers(name: str, array: pa.Array, nullable: bool) -> Column | None:
    values = as_numbers(array).drop_null().to_numpy(zero_copy_only=False)
    if not np.isfinite(values).any():
        return None
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    if np.all(values == np.round(values)) and max(abs(low), abs(high)) < LARGEST_STEPS:
        return Column(name=name, kind="integer", minimum=low, maximum=high, nullable=nullable)
    places = next((p for p in range(1, 13) if np.allclose(values, np.round(values, p), rtol=0, atol=1e-9)), None)
    wide = _spread(values) > 1e3
    if places is not None and not wide and (high - low) * 10**places <= LARGEST_STEPS:
        return Column(name=name, kind="numeric", minimum=low, maximum=high, step=10.0**-places, nullable=nullable)
    return Column(name=name, kind="numeric", minimum=low, maximum=high, digits=MOST_DIGITS - 2, nullable=nullable)


def _spread(values: NDArray[np.float64]) -> float:
    """How far the bulk of a column reaches, as a ratio of sizes."""
    sizes = np.abs(values[values != 0])
    small, large = np.quantile(sizes, [0.05, 0.95])
    return math.inf if small == 0 else float(large / small)
