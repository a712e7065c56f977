"""Files of strangers: some rows of any number of them, and their columns as a scheme wants them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genward.data.codec import words
from genward.data.readers import as_numbers, plain
from genward.data.schema import Column, Schema
from genward_policies.watermark.exam import Columns
from genward_policies.watermark.scheme import Axis

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT = 50_000  # rows of a file that are looked at; which ones hangs on their number alone, never on a key
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_TRUTH = {"true": 1, "1": 1, "yes": 1, "false": 0, "0": 0, "no": 0}


@dataclass(frozen=True)
class Read:
    """Rows that were kept, in no order that means anything, and how many there were."""

    table: pa.Table
    rows: int


def read(rows: pa.Table | Iterable[pa.RecordBatch], most: int = KEPT) -> Read:
    """At most so many rows, each as likely as another, in memory that does not grow with the file.

    Every row gets a random priority, the same whenever the file is read, and the lowest stay.
    """
    if isinstance(rows, pa.Table):
        rows = rows.to_batches()
    rng, parts, ranks, limit, count = np.random.default_rng(0), list[pa.RecordBatch](), list[Any](), 1.0, 0
    for batch in rows:
        drawn = rng.random(batch.num_rows)
        places = np.flatnonzero(drawn < limit)
        count += batch.num_rows
        if len(places):
            parts.append(batch if len(places) == batch.num_rows else batch.take(pa.array(places)))
            ranks.append(drawn[places])
        if sum(map(len, ranks)) > 2 * most:
            parts, ranks, limit = _thinned(parts, ranks, most)
    if sum(map(len, ranks)) > most:
        parts, ranks, _ = _thinned(parts, ranks, most)
    return Read(_joined(parts), count)


def _thinned(parts: list[pa.RecordBatch], ranks: list[Any], most: int) -> tuple[list[pa.RecordBatch], list[Any], float]:
    drawn = np.concatenate(ranks)
    keep = np.sort(np.argpartition(drawn, most)[:most])
    table = _joined(parts).take(pa.array(keep)).combine_chunks()
    return table.to_batches(), [drawn[keep]], float(drawn[keep].max())


def _joined(parts: list[pa.RecordBatch]) -> pa.Table:
    if not parts:
        return pa.table({})
    return pa.concat_tables([pa.Table.from_batches([part]) for part in parts], promote_options="permissive")


@dataclass(frozen=True)
class Told:
    """The columns of a file that a scheme knows, and how many values of each could not be read."""

    columns: Columns
    unreadable: Mapping[str, int]


def columns_of(table: pa.Table, schema: Schema, axes: Iterable[Axis]) -> Told:
    """Columns by name, in the schema's units: numbers as float64, choices as codes. What cannot be read is missing; a
    column of which nothing can be read is not there."""
    found: dict[str, Any] = {}
    unreadable: dict[str, int] = {}
    for axis in axes:
        if axis.name not in table.column_names:
            continue
        column, array = schema.column(axis.name), _whole(table[axis.name])
        values, missing = _numbers(array, column) if column.is_number else _codes(array, column)
        bad = int(missing.sum()) - array.null_count
        if bad > 0:
            unreadable[axis.name] = bad
        if not missing.all() or array.null_count == len(array):
            found[axis.name] = values
    return Told(found, unreadable)


def _whole(array: pa.ChunkedArray) -> pa.Array:
    joined = array.combine_chunks()
    found: pa.Array = plain(joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined)
    return found


def _text(array: pa.Array) -> bool:
    return bool(pa.types.is_string(array.type) or pa.types.is_large_string(array.type))


def _numbers(array: pa.Array, column: Column) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    try:
        if column.kind == "datetime" and not pa.types.is_timestamp(array.type):
            array = _times(array)
        elif _text(array):
            trimmed = pc.utf8_trim_whitespace(array)
            array = pc.if_else(pc.match_substring_regex(trimmed, _NUMBER), trimmed, pa.scalar(None, trimmed.type))
        values = as_numbers(array.cast(pa.timestamp("us")) if column.kind == "datetime" else array.cast(pa.float64()))
        numbers = values.fill_null(float("nan")).to_numpy(zero_copy_only=False).astype(np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = np.full(len(array), np.nan)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    return numbers, np.isnan(numbers)


def _times(array: pa.Array) -> pa.Array:
    """Text as times; a value that is none is missing."""
    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    try:
        return text.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        stamps = (_time(value) for value in text.to_pylist())
        return pa.array(stamps, pa.timestamp("us"))


def _time(value: str | None) -> Any:
    try:
        return None if value is None else pa.scalar(value).cast(pa.timestamp("us")).as_py()
    except pa.ArrowInvalid:
        return None


def _codes(array: pa.Array, column: Column) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    try:
        text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.full(len(array), -1, dtype=np.int32), np.ones(len(array), dtype=bool)
    if column.kind == "boolean":
        lower = pc.utf8_lower(text)
        place = pc.index_in(lower, value_set=pa.array(list(_TRUTH)))
        known = np.array([*_TRUTH.values(), -1], dtype=np.int32)
        codes = known[place.fill_null(len(_TRUTH)).to_numpy(zero_copy_only=False)]
    else:
        found = pc.index_in(text, value_set=pa.array(words(column), pa.string()))
        codes = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, codes < 0
